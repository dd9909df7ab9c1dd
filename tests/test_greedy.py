"""The loop: whatever is drafted, the ids are those of naive greedy decoding."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.decoding import DraftConfig, NoDrafter, ReferenceDrafter, greedy_decode
from llma_rag.decoding.naive import naive_greedy
from tests.scripted import OracleDrafter, ScriptedDrafter, ScriptedModel

VOCAB = 7
ids = st.lists(st.integers(0, VOCAB - 1), max_size=30)
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)
any_ids = st.lists(st.integers(-3, 10**6), max_size=20)  # of another tokenizer, or nonsense
limits = {"max_tokens": st.integers(1, 60), "eos_ids": st.sets(st.integers(0, VOCAB - 1), max_size=2)}


def decode(model, prompt, drafter, max_tokens, eos_ids):
    steps = list(greedy_decode(model, prompt, drafter, max_tokens=max_tokens, eos_ids=eos_ids))
    most = model.candidates * (model.width - 1)
    assert all(0 <= step.accepted <= step.drafted <= most for step in steps)
    return [token_id for step in steps for token_id in step.ids], steps


def oracle(model, prompt, max_tokens, eos_ids):
    return naive_greedy(model.next_id, prompt, max_tokens=max_tokens, eos_ids=eos_ids)


class AnyScores:
    """Scores that have nothing to do with the places."""

    def __init__(self, scores):
        self.scores_of = cycle(scores)

    def scores(self, candidate_positions, position):
        assert min(candidate_positions) >= 0
        assert max(candidate_positions) < position
        return [next(self.scores_of) for _ in candidate_positions]


scores = st.none() | st.lists(st.floats(), min_size=1, max_size=9)  # not a number and infinities among them
alikes = st.none() | st.lists(st.integers(0, VOCAB - 1), min_size=VOCAB, max_size=VOCAB)


@given(
    prompt=prompts,
    references=st.lists(any_ids | ids, max_size=4),
    seed=st.integers(0, 99),
    candidates=st.integers(1, 4),
    scores=scores,
    alike=alikes,
    **limits,
)
def test_any_references_and_any_scores_give_the_ids_of_plain_decoding(
    prompt, references, seed, candidates, scores, alike, max_tokens, eos_ids
):
    model = ScriptedModel(VOCAB, seed=seed, candidates=candidates)
    expected = oracle(model, prompt, max_tokens, eos_ids)
    drafter = ReferenceDrafter(references, prompt, scorer=scores and AnyScores(scores), alike=alike)
    assert decode(model, prompt, drafter, max_tokens, eos_ids)[0] == expected


@given(
    prompt=prompts,
    drafts=st.lists(any_ids | ids, max_size=40),
    width=st.integers(2, 9),
    candidates=st.integers(1, 4),
    **limits,
)
def test_any_adversarial_draft_gives_the_ids_of_plain_decoding(
    prompt, drafts, width, candidates, max_tokens, eos_ids
):
    model = ScriptedModel(VOCAB, width, candidates=candidates)
    expected = oracle(model, prompt, max_tokens, eos_ids)
    assert decode(model, prompt, ScriptedDrafter(drafts), max_tokens, eos_ids)[0] == expected


@given(
    prompt=prompts,
    spoil=st.lists(st.none() | st.integers(0, 8), max_size=40),
    candidates=st.integers(1, 4),
    **limits,
)
def test_drafts_that_are_right_up_to_a_place_give_the_ids_of_plain_decoding(
    prompt, spoil, candidates, max_tokens, eos_ids
):
    model = ScriptedModel(VOCAB, width=8, candidates=candidates)
    expected = oracle(model, prompt, max_tokens, eos_ids)
    drafter = OracleDrafter(oracle(model, prompt, 100, ()), spoil, VOCAB)
    assert decode(model, prompt, drafter, max_tokens, eos_ids)[0] == expected


@given(prompt=prompts, room_left=st.integers(1, 12), references=st.lists(ids, max_size=2))
def test_decoding_up_to_the_end_of_the_context_is_exact(prompt, room_left, references):
    model = ScriptedModel(VOCAB, width=8, context_length=len(prompt) + room_left)
    expected = oracle(model, prompt, room_left, ())
    assert decode(model, prompt, ReferenceDrafter(references, prompt), room_left, ())[0] == expected


def test_perfect_drafts_take_one_pass_per_width():
    model = ScriptedModel(VOCAB, width=5)
    truth = oracle(model, [1, 2, 3], 101, ())
    output, steps = decode(model, [1, 2, 3], OracleDrafter(truth, [], VOCAB), 101, ())
    assert output == truth
    assert len(steps) == 1 + 100 // 5


def test_no_drafter_takes_one_pass_per_id():
    model = ScriptedModel(VOCAB)
    output, steps = decode(model, [1, 2], NoDrafter(), 20, ())
    assert len(output) == len(steps) == model.passes == 20


def test_eos_inside_an_accepted_draft_ends_the_output_there():
    model = ScriptedModel(VOCAB, width=8)
    truth = oracle(model, [3, 1, 4], 30, ())
    eos = truth[10]
    first = truth.index(eos)
    output, _ = decode(model, [3, 1, 4], OracleDrafter(truth, [], VOCAB), 30, {eos})
    assert output == truth[: first + 1]


@pytest.mark.parametrize(("prompt", "max_tokens"), [([], 5), ([1], 0), ([1], -1)])
def test_bad_arguments_are_errors(prompt, max_tokens):
    with pytest.raises(ValueError, match="at least"):
        list(greedy_decode(ScriptedModel(), prompt, NoDrafter(), max_tokens=max_tokens))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"match_length": 0}, "must be from 1 to 8, got 0"),
        ({"match_length": 9}, "must be from 1 to 8, got 9"),
        ({"copy_length": 0}, "must be at least 1, got 0"),
    ],
)
def test_bad_draft_configuration_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        DraftConfig(**settings)
