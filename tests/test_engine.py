"""The engine over a tiny random model: exact, streamed, cancellable, safe to share between threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llma_rag.decoding import NgramIndex
from llma_rag.engine import Engine
from llma_rag.errors import ContextLengthError, ModelError, PromptError, RequestCancelledError
from llma_rag.models import Verdict
from llma_rag.provenance import as_references, copied_spans
from tests.conftest import EXAMPLES
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

PROMPT = "Groups of more than ten people"


@pytest.fixture(scope="module", params=["llama-float32", "qwen2-bfloat16", "gemma3-bfloat16"])
def engine(request):
    architecture, dtype = request.param.split("-")
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, getattr(torch, dtype), vocab_size=len(tokenizer))
    return Engine(model, tokenizer)


@pytest.fixture(scope="module")
def llama():
    tokenizer = tiny_tokenizer()
    return Engine(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)


texts = st.text(max_size=60) | st.sampled_from(TEXT.splitlines())


@settings(max_examples=max(15, EXAMPLES // 5))
@given(
    prompt=st.sampled_from([PROMPT, "The museum", [{"role": "user", "content": "When does it open?"}]]),
    references=st.lists(texts, max_size=3),
    own=st.booleans(),
    max_tokens=st.sampled_from([1, 2, 9, 40]),
    stop=st.lists(st.text(min_size=1, max_size=2) | st.sampled_from(["e", " b", "the"]), max_size=2),
)
def test_references_change_nothing_but_the_passes(engine, prompt, references, own, max_tokens, stop):
    plain = engine.generate(prompt, references=references, max_tokens=max_tokens, stop=stop, draft=False)
    if own:  # the answer itself as a reference: long drafts, stop strings and limits inside them
        references = [*references, engine.generate(prompt, max_tokens=60, draft=False).text]
        plain = engine.generate(prompt, references=references, max_tokens=max_tokens, stop=stop, draft=False)
    drafted = engine.generate(prompt, references=references, max_tokens=max_tokens, stop=stop)
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    assert drafted.finish_reason == plain.finish_reason
    assert drafted.copied_spans == plain.copied_spans == copied_spans(plain.text, as_references(references))
    assert drafted.forward_passes <= plain.forward_passes == len(plain.token_ids)
    assert not any(string in drafted.text for string in stop)


def test_a_reference_that_holds_the_answer_saves_most_passes(llama):
    plain = llama.generate(PROMPT, max_tokens=80, draft=False)
    ids = plain.token_ids
    drafted = llama.generate(PROMPT, references=[plain.text], max_tokens=80)
    assert drafted.token_ids == ids
    assert drafted.forward_passes < plain.forward_passes
    assert 0 < drafted.accepted <= drafted.drafted


def test_a_reference_is_indexed_once_for_all_requests(llama, monkeypatch):
    indexed = []
    made = NgramIndex.__init__

    def counted(self, ids, alike):
        indexed.append(self)
        made(self, ids, alike)

    monkeypatch.setattr(NgramIndex, "__init__", counted)
    text = "A text that no other test has for a reference."
    first = llama.generate(PROMPT, references=[text, text], max_tokens=5)
    assert len(indexed) == 2  # the text and the prompt
    assert llama.generate(PROMPT, references=[text], max_tokens=5).token_ids == first.token_ids
    assert len(indexed) == 3  # the prompt only


def test_of_references_beyond_the_limit_the_best_are_searched(llama, monkeypatch):
    plain = llama.generate(PROMPT, max_tokens=20, draft=False)
    assert plain.reference_tokens == 0
    count = llama.count_tokens
    known = llama.generate(PROMPT, references=[TEXT, TEXT.upper()], max_tokens=20)
    assert known.reference_tokens == count(TEXT) + count(TEXT.upper())
    limit = count(TEXT) + 3
    monkeypatch.setattr("llma_rag.engine.MOST_REFERENCE_IDS", limit)
    for references in ([TEXT, TEXT, "", TEXT.upper(), "more"], [TEXT * 20]):
        drafted = llama.generate(PROMPT, references=references, max_tokens=20)
        assert drafted.reference_tokens == limit
        assert drafted.token_ids == plain.token_ids


def test_references_longer_than_the_context_are_fine(llama):
    long = TEXT * 50
    assert llama.count_tokens(long) > llama.runner.context_length
    plain = llama.generate(PROMPT, max_tokens=20, draft=False)
    assert llama.generate(PROMPT, references=[long, "", TEXT], max_tokens=20).token_ids == plain.token_ids


def test_the_stream_joined_is_the_text(engine):
    stream = engine.stream(PROMPT, references=[TEXT], max_tokens=60)
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == stream.result.text == engine.generate(PROMPT, max_tokens=60).text


def test_stop_strings_across_tokens_end_the_answer(llama):
    whole = llama.generate(PROMPT, max_tokens=60).text
    stop = whole[20:26]
    begin = whole.index(stop)
    for draft in (True, False):
        answer = llama.generate(PROMPT, references=[whole], max_tokens=60, stop=[stop], draft=draft)
        assert answer.text == whole[:begin]
        assert answer.finish_reason == "stop"


def test_an_end_of_sequence_id_ends_the_answer_and_is_its_last_id(llama):
    whole = llama.generate(PROMPT, max_tokens=60)
    eos = whole.token_ids[30]
    first = whole.token_ids.index(eos)
    model = tiny_model("llama", vocab_size=len(llama.tokenizer))
    model.generation_config.eos_token_id = [eos, 5]
    engine = Engine(model, llama.tokenizer)
    assert engine.eos_ids == {eos, 5}
    answer = engine.generate(PROMPT, references=[whole.text], max_tokens=60)
    assert answer.token_ids == whole.token_ids[: first + 1]
    assert answer.finish_reason == "stop"


def test_usage_and_timings_add_up(llama):
    answer = llama.generate(PROMPT, max_tokens=30)
    assert answer.prompt_tokens == llama.count_tokens(PROMPT)
    assert answer.completion_tokens == len(answer.token_ids) == 30
    assert answer.finish_reason == "length"
    assert answer.forward_passes + answer.accepted == 30
    timings = answer.timings
    assert timings.draft_s + timings.verify_s <= timings.decode_s
    assert timings.total_s == timings.prefill_s + timings.decode_s
    assert answer.verdict.exact


def test_max_tokens_none_fills_the_context(llama):
    prompt = TEXT * 3
    answer = llama.generate(prompt, max_tokens=None)
    assert answer.prompt_tokens + answer.completion_tokens == llama.runner.context_length
    assert llama.generate(prompt, max_tokens=100_000).token_ids == answer.token_ids


def test_a_prompt_beyond_the_context_is_an_error_with_both_numbers(llama):
    with pytest.raises(ContextLengthError, match=r"the prompt has \d{4} tokens, but the context holds 1024"):
        llama.generate(TEXT * 20)
    assert llama.generate(PROMPT, max_tokens=2).completion_tokens == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1"),
        ({"stop": ["a", ""]}, ValueError, "must not be empty"),
        ({"stop": "abc"}, ValueError, "must be a list"),
        ({"references": "abc"}, TypeError, "must be a list"),
        ({"references": [1]}, TypeError, "a reference must be a string"),
        ({"prompt": ""}, PromptError, "the prompt is empty"),
        ({"temperature": 1.0}, TypeError, "temperature"),
    ],
)
def test_bad_arguments_are_errors(llama, arguments, error, message):
    with pytest.raises(error, match=message):
        llama.generate(**{"prompt": PROMPT, **arguments})


def passes_after(engine, monkeypatch, abandon):
    """Let a stream's first verify step wait, abandon the stream, and count the steps that it still takes."""
    steps, entered, go_on = [], threading.Event(), threading.Event()
    verify = type(engine.runner).verify

    def waiting_verify(self, position, ids):
        steps.append(position)
        entered.set()
        assert go_on.wait(30)
        return verify(self, position, ids)

    monkeypatch.setattr(type(engine.runner), "verify", waiting_verify)
    streams = [engine.stream(PROMPT, max_tokens=900, draft=False)]
    assert entered.wait(30)
    abandon(streams)
    go_on.set()
    assert engine.generate(PROMPT, max_tokens=1).completion_tokens == 1  # queues behind, takes no step
    return len(steps)


def test_closing_a_stream_stops_the_model_before_its_next_step(llama, monkeypatch):
    def close(streams):
        streams[0].close()

    assert passes_after(llama, monkeypatch, close) == 1


def test_dropping_a_stream_stops_the_model_before_its_next_step(llama, monkeypatch):
    assert passes_after(llama, monkeypatch, lambda streams: streams.clear()) == 1


def test_the_result_of_a_closed_stream_is_an_error(llama):
    with llama.stream(PROMPT, max_tokens=900, draft=False) as stream:
        next(stream)
    with pytest.raises(RequestCancelledError):
        _ = stream.result


def test_requests_count_as_unfinished_until_the_model_is_done_with_them(llama):
    assert llama.unfinished_requests == 0
    streams = [llama.stream(PROMPT, max_tokens=900, draft=False) for _ in range(3)]
    next(streams[0])
    assert llama.unfinished_requests == 3
    for stream in streams:
        stream.close()
    for stream in streams:
        with pytest.raises(RequestCancelledError):
            _ = stream.result
    assert llama.unfinished_requests == 0


def test_cancelling_stops_a_prefill_between_blocks(llama, monkeypatch):
    blocks = []
    block = type(llama.runner).prefill_block
    reached = threading.Event()

    def slow_block(self, start, ids):
        blocks.append(start)
        reached.set()
        time.sleep(0.05)
        return block(self, start, ids)

    monkeypatch.setattr(type(llama.runner), "prefill_block", slow_block)
    stream = llama.stream(TEXT * 4, max_tokens=5)
    reached.wait()
    stream.close()
    with pytest.raises(RequestCancelledError):
        _ = stream.result
    assert len(blocks) < 4


def test_concurrent_callers_all_get_their_own_answer(engine):
    prompts = [f"{PROMPT} {number}" for number in range(8)]
    expected = [engine.generate(prompt, max_tokens=15).token_ids for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: engine.generate(prompt, max_tokens=15), prompts))
    assert [answer.token_ids for answer in answers] == expected


def test_two_engines_of_one_model_share_its_thread():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    engines = [Engine(model, tokenizer), Engine(model, tokenizer, width=16)]
    before = threading.active_count()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda engine: engine.generate(PROMPT, max_tokens=15).text, engines)
    assert first == second
    assert threading.active_count() <= before


def test_an_error_in_the_worker_reaches_the_caller(llama, monkeypatch):
    def broken(self, position, ids):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(llama.runner), "verify", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        llama.generate(PROMPT)


def test_where_no_width_is_exact_nothing_is_drafted(monkeypatch):
    monkeypatch.setattr(
        "llma_rag.models.calibration.cached_probe", lambda runner: Verdict(runner.width, False, 10, 3)
    )
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    answer = engine.generate(PROMPT, references=[TEXT], max_tokens=20)
    assert answer.drafted == 0
    assert not answer.verdict.exact


def test_a_width_that_is_asked_for_and_not_exact_is_an_error(monkeypatch):
    monkeypatch.setattr(
        "llma_rag.models.calibration.cached_probe", lambda runner: Verdict(runner.width, False, 10, 3)
    )
    tokenizer = tiny_tokenizer()
    with pytest.raises(ModelError, match=r"width 9 are not exact here \(3 of 10 rows differ\)"):
        Engine(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, width=9)


def test_each_engine_keeps_the_number_of_threads_it_was_made_with(llama):
    expected = llama.generate(PROMPT, max_tokens=20).token_ids
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        other = Engine(llama.model, llama.tokenizer)
    finally:
        torch.set_num_threads(threads)
    assert (llama.runner.threads, other.runner.threads) == (threads, threads + 1)
    for engine in (llama, other, llama):
        assert engine.generate(PROMPT, max_tokens=20).token_ids == expected
        assert engine._worker.submit(torch.get_num_threads).result() == engine.runner.threads


def test_the_callers_model_is_not_changed():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    modules = [type(module) for module in model.modules()]
    engine = Engine(model, tokenizer)
    engine.generate(PROMPT, max_tokens=5)
    assert [type(module) for module in model.modules()] == modules
    assert model.config._attn_implementation == "sdpa"


def test_numbers_that_overflow_are_an_error_and_do_not_poison_the_next_answer(monkeypatch):
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    expected = engine.generate(PROMPT, max_tokens=10).token_ids
    embedding = engine.model.get_input_embeddings().weight
    spoilt = expected[4]
    saved = embedding[spoilt].clone()
    with torch.no_grad():
        embedding[spoilt] = float("inf")
    for draft in (True, False):
        with pytest.raises(ModelError, match="overflow in float32"):
            engine.generate(PROMPT, max_tokens=10, draft=draft)
    with torch.no_grad():
        embedding[spoilt] = saved
    assert engine.generate(PROMPT, max_tokens=10).token_ids == expected


def test_a_forked_process_is_told_to_make_its_own_engine(llama, monkeypatch):
    monkeypatch.setattr("llma_rag.engine.os.getpid", lambda: -1)
    with pytest.raises(ModelError, match="forked process"):
        llama.generate(PROMPT)
