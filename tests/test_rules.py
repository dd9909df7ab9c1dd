"""Rules over logits: the ids of transformers' `generate` with the same arguments, with and without drafts."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llma_rag.engine import Engine
from llma_rag.models import RuleOptions, Rules
from tests.conftest import EXAMPLES
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

PROMPT = "The museum opens at nine and closes at five. The museum shop"


@pytest.fixture(scope="module", params=["llama-float32-1", "qwen2-bfloat16-1", "llama-bfloat16-3"])
def engine(request):
    architecture, dtype, candidates = request.param.split("-")
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, getattr(torch, dtype), vocab_size=len(tokenizer))
    return Engine(model, tokenizer, width=8, candidates=int(candidates))


rules = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.8, 1.3, 2.0]),
        "no_repeat_ngram_size": st.sampled_from([1, 2, 3]),
        "min_tokens": st.sampled_from([5, 30]),
        "bad_words": st.lists(st.sampled_from(["museum", "e", " the", "at nine"]), min_size=1, max_size=2),
    },
)


@settings(max_examples=max(15, EXAMPLES // 5))
@given(rules=rules, own=st.booleans(), max_tokens=st.sampled_from([1, 12, 40]))
def test_drafts_change_nothing_under_any_rules(engine, rules, own, max_tokens):
    plain = engine.generate(PROMPT, max_tokens=max_tokens, draft=False, **rules)
    references = [plain.text if own else TEXT]
    drafted = engine.generate(PROMPT, references=references, max_tokens=max_tokens, **rules)
    assert drafted.token_ids == plain.token_ids
    assert drafted.forward_passes <= plain.forward_passes


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"min_tokens": 20}, {"min_new_tokens": 20}),
        ({"bad_words": ["e"]}, {"bad_words": ["e", " e"]}),
    ],
)
def test_ids_are_those_of_generate(ours, theirs):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    first = Engine(model, tokenizer).generate(PROMPT, max_tokens=30, draft=False).token_ids
    model.generation_config.eos_token_id = first[7]  # so that min_tokens has something to prevent
    engine = Engine(model, tokenizer)
    if words := theirs.pop("bad_words", None):
        theirs["bad_words_ids"] = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    expected = model.generate(prompt, max_new_tokens=30, do_sample=False, pad_token_id=0, **theirs)
    answer = engine.generate(PROMPT, references=[TEXT], max_tokens=30, **ours)
    assert answer.token_ids == expected[0, prompt.shape[1] :].tolist()


def test_no_run_of_ids_comes_twice(engine):
    ids = engine.generate(PROMPT, max_tokens=60, no_repeat_ngram_size=2).token_ids
    pairs = list(itertools.pairwise(ids))
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty must be more than 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be 0 or more"),
        ({"min_tokens": -1}, "min_tokens must be 0 or more"),
        ({"bad_words": "word"}, "bad_words must be a list of words"),
        ({"bad_words": [""]}, "bad_words must be a list of words, none empty"),
    ],
)
def test_rules_out_of_range_are_errors(engine, option, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(PROMPT, **option)


def test_numbers_without_a_point_are_fine_and_nan_is_none(engine):
    penalised = engine.generate(PROMPT, max_tokens=20, repetition_penalty=2)
    assert penalised.token_ids == engine.generate(PROMPT, max_tokens=20, repetition_penalty=2.0).token_ids
    with pytest.raises(ValueError, match="repetition_penalty must be more than 0"):
        engine.generate(PROMPT, repetition_penalty=float("nan"))


def test_no_rules_are_false_and_the_end_of_an_answer_is_no_word():
    assert not Rules(RuleOptions(), 5, {2})
    assert not Rules(RuleOptions(bad_words=((2,), ())), 5, {2})
    assert not Rules(RuleOptions(min_tokens=3), 5, set())  # nothing ends it anyway
    assert Rules(RuleOptions(bad_words=((2,), (4, 5))), 5, {2})
