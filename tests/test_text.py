"""Ids to text and back: nothing is emitted that could still change, and nothing is lost."""

from __future__ import annotations

import copy
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.errors import PromptError
from llma_rag.text import Detokenizer, StopStrings, alike_ids, prompt_ids, reference_ids
from tests.tiny import TEXT, sentencepiece_like_tokenizer, tiny_tokenizer

TOKENIZERS = {"byte-level": tiny_tokenizer, "sentencepiece-like": sentencepiece_like_tokenizer}


def full_text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(max_size=40) | st.sampled_from(TEXT.splitlines()))
def test_streamed_text_joined_is_the_text(name, text):
    tokenizer = TOKENIZERS[name]()
    ids = reference_ids(tokenizer, text)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.feed(token_id) for token_id in ids]
    assert "".join([*pieces, detokenizer.finish()]) == full_text(tokenizer, ids)


@given(data=st.data())
def test_streamed_random_ids_joined_are_their_text(data):
    tokenizer = tiny_tokenizer()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.feed(token_id) for token_id in ids]
    assert "".join([*pieces, detokenizer.finish()]) == full_text(tokenizer, ids)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_half_character_is_emitted(name):
    tokenizer = TOKENIZERS[name]()
    detokenizer = Detokenizer(tokenizer)
    for token_id in reference_ids(tokenizer, "10 € 🙂 温度"):
        assert "\ufffd" not in detokenizer.feed(token_id)


@given(
    text=st.text("ab<>", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=10),
    stop=st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_end_the_text_at_the_first_one_however_it_is_cut(text, cuts, stop):
    places = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    stops = StopStrings(stop)
    emitted = ""
    for begin, end in itertools.pairwise(places):
        emitted += stops.feed(text[begin:end])
        assert not any(string in emitted for string in stop)
    emitted += stops.finish()
    if any(string in text for string in stop):
        assert stops.found in stop
        assert text.startswith(emitted + stops.found)
    else:
        assert stops.found is None
        assert emitted == text


def test_empty_stop_string_is_an_error():
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(["a", ""])


def test_messages_go_through_the_chat_template_once():
    tokenizer = tiny_tokenizer()
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Hello"}])
    assert tokenizer.decode(ids) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_messages_without_a_template_are_an_error():
    with pytest.raises(PromptError, match="no chat template"):
        prompt_ids(sentencepiece_like_tokenizer(), [{"role": "user", "content": "Hello"}])


def test_empty_prompt_is_an_error():
    with pytest.raises(PromptError, match="empty"):
        prompt_ids(tiny_tokenizer(), "")


def strict_tokenizer():
    """A tokenizer whose template knows no system role and wants the roles to alternate, like Gemma 2's."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    return tokenizer


def test_a_template_without_system_role_gets_the_instruction_from_the_user():
    tokenizer = strict_tokenizer()
    ids = prompt_ids(
        tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    )
    assert tokenizer.decode(ids) == "Be brief.\n\nHello"


def test_a_template_that_wants_roles_to_alternate_gets_them_so():
    tokenizer = strict_tokenizer()
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "user", "content": "you"},
        {"role": "tool", "content": "again", "tool_call_id": "1"},
    ]
    assert tokenizer.decode(prompt_ids(tokenizer, messages)) == "Hello\n\nyou\n\nagain"


def test_messages_that_a_template_does_not_take_are_an_error():
    messages = [{"role": "assistant", "content": "Hello"}]
    with pytest.raises(PromptError, match="does not take these messages: Roles must alternate"):
        prompt_ids(strict_tokenizer(), messages)


def test_an_answer_may_begin_as_asked():
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "Hello"}]
    ids = prompt_ids(tokenizer, messages, answer_prefix="It is")
    assert tokenizer.decode(ids).endswith("assistant\nIt is")
    with pytest.raises(
        PromptError, match="a string goes through no chat template; pass messages to use tools"
    ):
        prompt_ids(tokenizer, "Hello", chat_template_kwargs={"tools": [1]})


def test_ids_alike_differ_in_case_or_a_space_before_and_stand_for_themselves_otherwise():
    tokenizer = tiny_tokenizer()
    alike = alike_ids(tokenizer)
    assert len(alike) == len(tokenizer)
    assert all(alike[first] == first <= token_id for token_id, first in enumerate(alike))
    texts = [tokenizer.decode([token_id]) for token_id in range(len(tokenizer))]
    grouped = [token_id for token_id, first in enumerate(alike) if first != token_id]
    assert grouped
    for token_id in grouped:
        assert texts[token_id].strip().lower() == texts[alike[token_id]].strip().lower() != ""
    assert [alike[token_id] for token_id in tokenizer.all_special_ids] == tokenizer.all_special_ids
