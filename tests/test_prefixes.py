"""Prefill blocks of earlier prompts: bit-identical to computing afresh, whatever came in between."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llma_rag.decoding import NoDrafter, ReferenceDrafter, greedy_decode
from llma_rag.models import ModelRunner
from llma_rag.models.linears import pack_for_cpu
from llma_rag.models.memory import PREFILL_BLOCK
from llma_rag.models.prefixes import PrefixCache, block_keys
from tests.conftest import EXAMPLES
from tests.tiny import VOCAB, tiny_model

MIB = 2**20


def make(architecture, dtype, budget, candidates=1):
    model = tiny_model(architecture, dtype)
    pack_for_cpu(model)
    return ModelRunner(model, 8, 768, prefix_cache_bytes=budget, candidates=candidates)


@pytest.fixture(
    scope="module",
    params=["llama-bfloat16", "gemma3-float32", "mixtral-float32"],
)
def runners(request):
    """One that reuses much, one that reuses what its slots still hold, one that never does."""
    architecture, dtype = request.param.split("-")
    dtype = getattr(torch, dtype)
    return [make(architecture, dtype, budget) for budget in (64 * MIB, 0, 0)]


def ids_of(length, seed):
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def first_step(runner, prompt, *, reuse):
    """Return the ids reused, the id that follows the prompt and the logits of the step after it, then decode on."""
    known = runner.recall(prompt) if reuse else 0
    following = runner.prefill(prompt, known=known)
    logits = runner.verify_logits(len(prompt), [following]).clone()
    list(
        greedy_decode(
            _Prefilled(runner, following), prompt, ReferenceDrafter([prompt], prompt), max_tokens=12
        )
    )
    return known, following, logits[0]


class _Prefilled:
    """A runner whose prompt has been read."""

    def __init__(self, runner, following):
        self._runner, self._following = runner, following

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def prefill(self, ids):
        return self._following


prompts = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([1, 40, 127, 128, 200])), min_size=1, max_size=3
)


@settings(max_examples=max(6, EXAMPLES // 10))
@given(st.lists(prompts, min_size=2, max_size=5))
def test_whatever_prompts_came_before_every_logit_is_that_of_computing_afresh(runners, conversations):
    reusing, resident, fresh = runners
    for pieces in conversations:
        prompt = [token_id for seed, length in pieces for token_id in ids_of(length, seed)]
        expected = first_step(fresh, prompt, reuse=False)
        for runner in (reusing, resident):
            _, following, logits = first_step(runner, prompt, reuse=True)
            assert following == expected[1]
            assert torch.equal(logits, expected[2])


def test_reuse_is_exact_for_every_one_of_several_drafts():
    reusing, fresh = (make("llama", torch.bfloat16, budget, candidates=3) for budget in (64 * MIB, 0))
    documents, other = ids_of(300, 1), ids_of(300, 2)
    for prompt in (documents, other, [*documents, 5]):
        known = reusing.recall(prompt)
        following = reusing.prefill(prompt, known=known)
        assert fresh.prefill(prompt) == following
        drafts = [[following, 5, 6], [following, 7], [following, 8, 9, 3]]
        expected = fresh.step_logits(len(prompt), drafts)
        assert torch.equal(reusing.step_logits(len(prompt), drafts), expected)
    assert known == 2 * PREFILL_BLOCK


def test_what_is_known_is_not_computed_again():
    runner = make("llama", torch.float32, 64 * MIB)
    documents, other = ids_of(400, 1), ids_of(400, 2)
    assert first_step(runner, [*documents, 5], reuse=True)[0] == 0
    assert first_step(runner, [*documents, *ids_of(200, 3)], reuse=True)[0] == 3 * PREFILL_BLOCK
    assert first_step(runner, other, reuse=True)[0] == 0
    assert first_step(runner, [*documents, 6], reuse=True)[0] == 3 * PREFILL_BLOCK  # out of the cache
    changed = [*documents[:200], 9, *documents[201:]]
    assert first_step(runner, changed, reuse=True)[0] == PREFILL_BLOCK
    assert first_step(runner, documents[: 3 * PREFILL_BLOCK], reuse=True)[0] == 2 * PREFILL_BLOCK
    runner.zero_memory()
    assert first_step(runner, documents, reuse=True)[0] == 0


def test_without_a_cache_the_last_prompt_is_known():
    runner = make("llama", torch.float32, 0)
    documents = ids_of(400, 1)
    first_step(runner, documents, reuse=True)
    assert first_step(runner, [*documents, 5], reuse=True)[0] == 3 * PREFILL_BLOCK
    first_step(runner, ids_of(300, 2), reuse=True)
    assert first_step(runner, documents, reuse=True)[0] == 0


def test_slots_that_decoding_has_overwritten_are_not_known():
    runner = make("llama", torch.float32, 0)
    documents = ids_of(600, 1)
    runner.prefill(documents)
    runner.verify(130, [[5]])  # in the second block
    assert runner.recall(documents) == PREFILL_BLOCK


def test_the_cache_keeps_to_its_budget_and_forgets_the_oldest():
    block = [torch.zeros(256), torch.zeros(256)]  # 2 KiB
    cache = PrefixCache(5000)
    for key in (b"a", b"b"):
        assert cache.wants(key, 2048)
        cache.put(key, block)
    cache.touch([b"a"])
    cache.put(b"c", block)
    assert cache.get(b"b") is None
    assert cache.get(b"a") is cache.get(b"c") is block
    assert cache.bytes == 4096
    assert not cache.wants(b"c", 2048)
    assert not cache.wants(b"d", 5001)
    cache.clear()
    assert (cache.bytes, cache.get(b"a")) == (0, None)


def test_a_prompts_end_is_forgotten_before_its_beginning():
    block = [torch.zeros(256)]
    cache = PrefixCache(3 * 1024)
    for key in (b"1", b"2", b"3"):
        cache.put(key, block)
    cache.touch([b"1", b"2", b"3"])
    cache.put(b"other", block)
    assert [cache.get(key) is block for key in (b"1", b"2", b"3")] == [True, True, False]


def test_two_prompts_that_together_exceed_the_cache_still_reuse():
    model = tiny_model("llama", torch.float32)
    runner = ModelRunner(model, 8, 768, prefix_cache_bytes=0)
    runner.prefixes.budget = 5 * runner._memory.block_bytes
    one, other = ids_of(520, 1), ids_of(520, 2)
    first_step(runner, one, reuse=True)
    for prompt in (other, one, other, one):
        reused = first_step(runner, prompt, reuse=True)[0]
    assert reused >= PREFILL_BLOCK


@given(st.lists(st.integers(0, 3), max_size=300), st.lists(st.integers(0, 3), max_size=300))
def test_keys_are_equal_where_all_ids_up_to_there_are(one, other):
    for number, (first, second) in enumerate(zip(block_keys(one), block_keys(other), strict=False), start=1):
        assert (first == second) == (one[: number * PREFILL_BLOCK] == other[: number * PREFILL_BLOCK])


def test_decoding_after_reuse_is_decoding():
    reusing, fresh = make("llama", torch.bfloat16, 64 * MIB), make("llama", torch.bfloat16, 0)
    documents = ids_of(300, 4)
    first_step(reusing, documents, reuse=True)
    prompt = [*documents, *ids_of(20, 5)]
    known = reusing.recall(prompt)
    assert known == 2 * PREFILL_BLOCK
    following = reusing.prefill(prompt, known=known)
    ours = greedy_decode(_Prefilled(reusing, following), prompt, ReferenceDrafter([], prompt), max_tokens=60)
    theirs = greedy_decode(fresh, prompt, NoDrafter(), max_tokens=60)
    assert [i for step in ours for i in step.ids] == [i for step in theirs for i in step.ids]
