"""The proposer for vLLM, driven by a runner with the interface of vLLM's own."""

from __future__ import annotations

import subprocess
import sys
from itertools import groupby
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.vllm import SEPARATOR, ReferenceProposer, as_xargs, register
from llma_rag.vllm import proposer as proposer_module
from llma_rag.vllm.answers import RecentAnswers
from llma_rag.vllm.xargs import MOST_IDS, reference_ids_of

VOCABULARY = 1000
POSITIONS = 512
DOCUMENT = list(range(100, 180))


class State:
    """What a runner knows of a request."""

    def __init__(self, prompt, xargs):
        self.num_prompt_tokens = len(prompt)
        self.sampling_params = SimpleNamespace(extra_args=xargs)
        self.ids = list(prompt)

    @property
    def output_token_ids(self):
        return self.ids[self.num_prompt_tokens :]


class Runner:
    """Keeps requests and their rows as vLLM's model runner does, with an answer that each request will have."""

    def __init__(self):
        self.requests = {}
        self.input_batch = SimpleNamespace(req_ids=[])
        self.answers = {}
        self.drafter = ReferenceProposer(
            SimpleNamespace(
                speculative_config=SimpleNamespace(num_speculative_tokens=8),
                model_config=SimpleNamespace(max_model_len=POSITIONS, get_vocab_size=lambda: VOCABULARY),
            )
        )

    def _update_states(self, finished=()):
        for request_id in finished:
            self.requests.pop(request_id, None)
            self.answers.pop(request_id, None)
        self.input_batch.req_ids = list(self.requests)[::-1]  # rows have an order of their own

    def add(self, request_id, prompt, answer, xargs=None):
        self.requests[request_id] = State(prompt, xargs)
        self.answers[request_id] = list(answer)

    def step(self, finished=(), drafts=None, prefilling=()):
        """Verify drafts as vLLM does, and ask for new ones; return them by request."""
        self._update_states(finished)
        rows = self.input_batch.req_ids
        sampled = []
        table = np.zeros((len(rows), POSITIONS), np.int32)
        lengths = np.zeros(len(rows), np.int32)
        for row, request_id in enumerate(rows):
            state = self.requests[request_id]
            if request_id in prefilling:
                sampled.append([])
                continue
            answer = self.answers[request_id]
            done = len(state.ids) - state.num_prompt_tokens
            draft = (drafts or {}).get(request_id, [])
            agreed = 0
            while (
                agreed < len(draft) and done + agreed < len(answer) and draft[agreed] == answer[done + agreed]
            ):
                agreed += 1
            new = answer[done : done + agreed + 1]
            state.ids += new
            sampled.append(new)
            table[row, : len(state.ids)] = state.ids
            lengths[row] = len(state.ids)
        return dict(zip(rows, self.drafter.propose(sampled, lengths, table), strict=True))

    def run(self, request_id):
        """Decode one request to its end; return how many steps it took."""
        steps, drafts = 0, {}
        state = self.requests[request_id]
        while len(state.ids) - state.num_prompt_tokens < len(self.answers[request_id]):
            drafts = self.step(drafts=drafts)
            steps += 1
        return steps


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    module, runner_module = ModuleType("vllm"), ModuleType("gpu_model_runner")
    module.__version__ = "0.32.0"
    runner_module.GPUModelRunner = Runner
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu_model_runner", runner_module)
    monkeypatch.setattr(proposer_module, "DRAFTING_S", 60)
    return module


def test_the_prompt_is_the_reference_where_none_come():
    runner = Runner()
    runner.add("a", [*DOCUMENT, 1, 2, 3], DOCUMENT[10:60])
    assert runner.run("a") < 10


def test_reference_ids_of_a_request_are_its_own():
    runner = Runner()
    runner.add("with", [1, 2], DOCUMENT[:50], as_xargs([[7, 8, 9], DOCUMENT]))
    runner.add("without", [1, 2], DOCUMENT[:50])
    runner.add("not wanted", DOCUMENT, DOCUMENT[:50], as_xargs([DOCUMENT], draft=False))
    drafts = runner.step()
    assert drafts == {"with": DOCUMENT[1:9], "without": [], "not wanted": []}
    assert runner.drafter.counts == {"drafts": 1, "drafted_ids": 8}


def test_state_goes_with_its_request_and_stays_while_it_is_preempted():
    runner = Runner()
    for request_id in "abc":
        runner.add(request_id, [1, 2], DOCUMENT, as_xargs([DOCUMENT]))
    runner.step()
    assert runner.drafter.known_requests == 3
    runner._update_states(finished=["a"])  # aborted: a step without any ids
    assert runner.drafter.known_requests == 2
    preempted = runner.requests.pop("b")
    runner.drafter.update(
        {**runner.requests, "b": preempted}, SimpleNamespace(req_ids=["c"])
    )  # not in the batch
    assert runner.drafter.known_requests == 2
    runner.requests["b"] = preempted
    assert runner.step()["b"] == DOCUMENT[2:10]  # resumed
    runner.step(finished=["b", "c"])
    runner.add("b", [1, 2], [7, 8, 9])  # the same id, another request
    assert runner.step()["b"] == []
    runner._update_states(finished=["b"])
    assert runner.drafter.known_requests == 0


def test_answers_lately_given_serve_later_requests(monkeypatch):
    monkeypatch.setenv("LLMA_RAG_REMEMBERED_IDS", "1000")
    runner = Runner()
    runner.add("a", [1, 2], DOCUMENT)
    assert runner.run("a") == len(DOCUMENT)
    runner.step(finished=["a"])
    runner.add("b", [3], DOCUMENT)
    assert runner.run("b") < 15


@pytest.mark.parametrize("forgotten", ["by request", "by default"])
def test_an_answer_that_is_not_to_be_remembered_is_not(forgotten, monkeypatch):
    if forgotten == "by request":
        monkeypatch.setenv("LLMA_RAG_REMEMBERED_IDS", "1000")
    runner = Runner()
    runner.add("a", [1, 2], DOCUMENT, as_xargs([], draft=forgotten == "by default"))
    runner.run("a")
    runner.step(finished=["a"])
    runner.add("b", [3], DOCUMENT)
    assert runner.run("b") == len(DOCUMENT)


def test_the_oldest_answers_are_forgotten_first_and_requests_under_way_go_on(monkeypatch):
    monkeypatch.setenv("LLMA_RAG_REMEMBERED_IDS", "60")
    runner = Runner()
    runner.add("under way", [1], [7] * 60)
    for number, begin in enumerate((100, 120, 140, 160)):
        runner.add(f"{number}", [2], range(begin, begin + 19))
        runner.run(f"{number}")
        runner.step(finished=[f"{number}"])
    runner.step()
    answers = runner.drafter._answers
    assert len(answers) == 50
    assert not any(index.holds([105, 106, 107, 108]) for index in answers.indexes)
    runner.answers["under way"][:] = [*runner.requests["under way"].output_token_ids, *range(160, 179)]
    runner.step()
    assert runner.step()["under way"] == [*range(162, 170)]


def test_many_answers_that_end_at_once_are_indexed_a_piece_a_step(monkeypatch):
    monkeypatch.setattr(proposer_module, "INDEXED_PER_STEP", 100)
    monkeypatch.setenv("LLMA_RAG_REMEMBERED_IDS", "1000")
    runner = Runner()
    for number in range(5):
        runner.add(f"{number}", [1], range(10 * number, 10 * number + 60))
        runner.run(f"{number}")
    runner.add("last", [1], [7] * 9)
    runner.step()
    runner.step(finished="01234")
    assert len(runner.drafter._answers) == 100
    runner.step()
    assert len(runner.drafter._answers) == 200


def test_the_memory_of_answers_keeps_its_bounds_whatever_comes():
    answers = RecentAnswers(10)
    for number in range(20):
        answers.add(range(number))
        while answers.index(3):
            assert max(map(len, answers.indexes)) <= 5
    assert 5 <= len(answers) <= 10
    assert answers.indexes[0].ids[-1] == 18 or answers.indexes[1].ids[-1] == 18


@pytest.mark.parametrize("told", ["-1", "many", "", "1e4", "5000001"])
def test_a_wrong_setting_is_told_at_the_start(told, monkeypatch):
    monkeypatch.setenv("LLMA_RAG_REMEMBERED_IDS", told)
    with pytest.raises(ValueError, match="LLMA_RAG_REMEMBERED_IDS must be a number from 0"):
        Runner()


def test_rows_without_time_for_a_draft_are_first_in_the_next_step(monkeypatch):
    monkeypatch.setattr(proposer_module, "DRAFTING_S", 0)
    runner = Runner()
    for request_id in "abc":
        runner.add(request_id, [1, 2], DOCUMENT, as_xargs([DOCUMENT]))
    drafted = [{one for one, draft in runner.step().items() if draft} for _ in range(4)]
    assert drafted == [{"c"}, {"b"}, {"a"}, {"c"}]
    assert runner.drafter.counts["rows_put_off"] == 4 * 2


def test_rows_whose_prompt_is_being_read_get_no_draft_and_shift_no_other():
    runner = Runner()
    for request_id in "abc":
        runner.add(request_id, [1, 2], DOCUMENT, as_xargs([DOCUMENT]))
    assert runner.step(prefilling="b") == {"a": DOCUMENT[1:9], "b": [], "c": DOCUMENT[1:9]}
    assert runner.step(prefilling="b") == {"a": DOCUMENT[2:10], "b": [], "c": DOCUMENT[2:10]}
    assert runner.step() == {"a": DOCUMENT[3:11], "b": DOCUMENT[1:9], "c": DOCUMENT[3:11]}


def test_output_that_is_taken_back_is_read_again():
    runner = Runner()
    runner.add("a", [1, 2], DOCUMENT, as_xargs([DOCUMENT]))
    for _ in range(3):
        runner.step()
    del runner.requests["a"].ids[3:]
    assert runner.step()["a"] == DOCUMENT[2:10]
    runner.answers["a"] = [*DOCUMENT[:1], *DOCUMENT[30:]]
    del runner.requests["a"].ids[3:]
    assert runner.step()["a"] == DOCUMENT[31:39]  # as many ids as before, but others


@pytest.mark.parametrize(
    "sent",
    ["text", 5, [[1]], ["1"], [1.0], [True], [VOCABULARY], [-2], [None]],
    ids=repr,
)
def test_what_is_no_reference_is_counted_and_the_prompt_still_serves(sent, caplog):
    runner = Runner()
    runner.add("a", DOCUMENT, DOCUMENT[:20], {"llma_rag_references": sent})
    assert runner.run("a") < 20
    assert runner.drafter.counts["UnusableReferencesError"] == 1


def test_endless_references_are_cut_and_hold_up_nobody(monkeypatch):
    runner = Runner()
    runner.add("a", [1, 2], DOCUMENT, {"llma_rag_references": [*range(200, 900)] * 15_000})
    runner.add("b", [1, 2], DOCUMENT[:8], as_xargs([DOCUMENT]))
    assert runner.step()["b"] == DOCUMENT[1:9]
    assert runner.drafter.counts["references_cut"] == 1
    a, b = (runner.drafter._drafting[request_id] for request_id in "ab")
    assert len(a.references) == MOST_IDS
    assert b.unindexed == 0
    assert a.unindexed == MOST_IDS + 4 + len(DOCUMENT) - proposer_module.INDEXED_PER_STEP
    monkeypatch.setattr(proposer_module, "MOST_IDS", MOST_IDS)
    runner.add("c", [1, 2], DOCUMENT, as_xargs([DOCUMENT]))
    runner.step()
    assert runner.drafter.counts["TooManyReferencesError"] == 1


def test_many_tiny_references_are_one_index():
    runner = Runner()
    runner.add("a", [1, 2], DOCUMENT[:30], as_xargs([[5]] * 10_000 + [DOCUMENT]))
    for _ in range(7):
        drafts = runner.step()
    assert drafts["a"] == DOCUMENT[7:15]
    assert len(runner.drafter._drafting["a"]._indexes) == 4  # with the prompt, and recent answers


def test_a_draft_is_the_models_ids_and_fits_its_context():
    runner = Runner()
    runner.add("a", [5, 6, -1, 7, 5], [6])
    assert runner.step()["a"] == []  # what follows 5, 6 is no id
    runner.add("b", [5] * (POSITIONS - 3), [5])
    assert len(runner.step(finished=["a"])["b"]) == 1


def test_faults_draft_nothing_and_do_not_reach_the_server(caplog):
    runner = Runner()
    runner.add("a", DOCUMENT, DOCUMENT)
    runner._update_states()
    drafter = runner.drafter
    assert drafter.propose([[1]], [3], [None]) == [[]]
    assert drafter.propose([[1], [2]], [3], None) == [[], []]
    drafter.update({}, None)
    assert drafter.propose([[1]], [3], np.zeros((1, 9), np.int32)) == [[]]
    assert drafter.counts.total() >= 4
    assert "nothing was drafted" in caplog.text


@given(
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=5), max_size=5),
    st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8),
)
def test_references_come_through_and_anything_else_is_told(references, other):
    sent = reference_ids_of(as_xargs(references), VOCABULARY)
    parts = [
        [*group] for is_end, group in groupby(sent, lambda token_id: token_id == SEPARATOR) if not is_end
    ]
    assert parts == [one for one in references if one]
    try:
        reference_ids_of({"llma_rag_references": other}, VOCABULARY)
    except ValueError as error:
        assert "llma_rag_references" in str(error)


def test_other_versions_are_refused_at_the_start(vllm, caplog):
    register()
    assert caplog.text == ""
    vllm.__version__ = "0.99.1"
    register()
    assert "drafts in vLLM 0.32 and 0.33, this is 0.99.1" in caplog.text
    with pytest.raises(RuntimeError, match=r"this is 0\.99\.1"):
        Runner()


def test_it_needs_neither_frameworks_nor_transformers():
    code = """
import sys
for name in ("langchain_core", "llama_index", "faiss", "transformers", "torch", "pydantic", "sentence_transformers"):
    sys.modules[name] = None
import llma_rag.vllm
"""
    subprocess.run([sys.executable, "-c", code], check=True)
