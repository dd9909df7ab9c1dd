"""The parts of a reply, told apart while it streams; the models' own chat templates."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.errors import PromptError
from llma_rag.replies import (
    ReplyParser,
    as_template_call,
    call_style,
    forced_call,
    takes_tools,
    thinks,
    with_fitting_ids,
)
from llma_rag.text import answer_opening, prompt_ids
from tests.scripted_engine import real_template
from tests.tiny import tiny_tokenizer


def parsed(text, pieces=1, **how):
    """Return content, reasoning and calls of a text that comes in pieces of a length."""
    parser = ReplyParser(**how)
    parts = [parser.feed(text[begin : begin + pieces]) for begin in range(0, len(text), pieces)]
    parts.append(parser.finish())
    return (
        "".join(part.content for part in parts),
        "".join(part.reasoning for part in parts),
        [(call.name, call.arguments) for part in parts for call in part.tool_calls],
    )


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
CASES = [
    ("plain", {}, ("plain", "", [])),
    ("a < b <thin", {"thinks": True}, ("a < b <thin", "", [])),
    ("  led by space", {"thinks": True}, ("  led by space", "", [])),
    ("<think>\nhm\n</think>\n\nYes.", {"thinks": True}, ("Yes.", "hm", [])),
    ("\n<think></think>Yes.\n", {"thinks": True}, ("Yes.\n", "", [])),
    ("<think>\nhm", {"thinks": True}, ("", "hm", [])),
    ("hm</think>\n\nYes.", {"thinks": True, "opened": True}, ("Yes.", "hm", [])),
    ("<think>not marks</think>", {}, ("<think>not marks</think>", "", [])),
    (CALL, {"calls": "tagged"}, ("", "", [("add", {"a": 1})])),
    (f"Let me see.\n{CALL}\n{CALL}", {"calls": "tagged"}, ("Let me see.", "", [("add", {"a": 1})] * 2)),
    (f"<think>x</think>\n{CALL}", {"thinks": True, "calls": "tagged"}, ("", "x", [("add", {"a": 1})])),
    (CALL, {}, (CALL, "", [])),
    ('<tool_call>{"name": "add", oops</tool_call>', {"calls": "tagged"}, ("", "", [("add", None)])),
    ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', {"calls": "tagged"}, ("", "", [("add", {"a": 1})])),
    ('{"name": "add", "parameters": {"a": 1}}', {"calls": "json"}, ("", "", [("add", {"a": 1})])),
    (' {"name": "add", "parameters": {}}; {"name": "b", "parameters": {}}', {"calls": "json"}, ("", "", [("add", {}), ("b", {})])),
    ('[{"name": "add", "arguments": {"a": 1}}]', {"calls": "json"}, ("", "", [("add", {"a": 1})])),
    ('{"answer": 4}', {"calls": "json"}, ('{"answer": 4}', "", [])),
    ('{"name": "Eve", "age": 3}', {"calls": "json"}, ('{"name": "Eve", "age": 3}', "", [])),
    ('{"name": "f", "parameters": {}}', {"calls": "json", "tools": ["g"]}, ('{"name": "f", "parameters": {}}', "", [])),
    ('{"name": "f", "parameters": {}}', {"calls": "json", "tools": ["f"]}, ("", "", [("f", {})])),
    ('{"name": "f", "parameters": {}}; {"name": "g", "par', {"calls": "json"}, ("", "", [("f", {}), ("g", None)])),
    ('[{"name": "f", "arguments": {"x', {"calls": "json"}, ("", "", [("f", None)])),
    ('{"name": "f", "parameters": {}} and more', {"calls": "json"}, ("and more", "", [("f", {})])),
    ('[{"name": "f", "parameters": {}}, {"name": "g", "parameters": "oops"}]', {"calls": "json"}, ("", "", [("f", {}), ("g", None)])),
    ("{no json", {"calls": "json"}, ("{no json", "", [])),
    ("It is {4}.", {"calls": "json"}, ("It is {4}.", "", [])),
]  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 3, 1000])
@pytest.mark.parametrize(("text", "how", "expected"), CASES)
def test_a_reply_falls_into_its_parts(text, how, expected, pieces):
    assert parsed(text, pieces, **how) == expected


marks = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "x"}', "a", " ", "\n", "<"]
    ),
    max_size=8,
)


@given(marks, st.integers(1, 7), st.booleans(), st.sampled_from([None, "tagged", "json"]))
def test_marks_anywhere_give_the_same_parts_in_any_pieces(words, size, thinks, calls):
    text = "".join(words)
    assert parsed(text, size, thinks=thinks, calls=calls) == parsed(text, 1000, thinks=thinks, calls=calls)


@given(marks)
def test_without_marks_to_know_nothing_is_changed(words):
    text = "a" + "".join(words)
    assert parsed(text, 2)[0] == text


def tokenizer_with(template):
    made = copy.deepcopy(tiny_tokenizer())
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("name", "tools", "thinking", "style"),
    [
        ("qwen2_5", True, False, "tagged"),
        ("qwen3", True, True, "tagged"),
        ("qwen3_instruct_2507", True, False, "tagged"),
        ("llama3_1", True, False, "json"),
        ("llama3_2", True, False, "json"),
        ("gemma3", False, False, None),
        ("phi3", False, False, None),
        ("deepseek_r1_distill", False, True, None),
    ],
)
def test_what_real_templates_can_do_is_told(name, tools, thinking, style):
    tokenizer = tokenizer_with(real_template(name))
    assert (takes_tools(tokenizer), thinks(tokenizer)) == (tools, thinking)
    if style:
        assert call_style(tokenizer, name) == style
    else:
        with pytest.raises(PromptError, match=f"chat template of {name} takes no tools"):
            call_style(tokenizer, name)


def test_the_newer_form_of_mistral_is_not_mistaken_for_the_older():
    with pytest.raises(PromptError, match="not known here"):
        call_style(tokenizer_with("{{ tools }}[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}"), "ministral")


MISTRAL = """{%- for message in messages %}
{%- if message.tool_calls is defined %}[TOOL_CALLS]{%- for call in message.tool_calls %}
{%- if not call.id is defined or call.id|length != 9 %}{{ raise_exception("ids have 9 characters") }}{%- endif %}
{{- call.function.name }} {{ call.id }}{%- endfor %}
{%- elif message.role == "tool" %}[TOOL_RESULTS]{{ message.tool_call_id }}{{ message.content }}
{%- else %}{{ message.content }}{%- endif %}
{%- endfor %}{{ tools }}"""


def test_calls_of_any_model_go_through_a_template_that_wants_short_ids():
    tokenizer = tokenizer_with(MISTRAL)
    calls = [
        as_template_call("add", {"a": 1}, identity) for identity in ("call_0123456789abcdef", "abcdefgh1")
    ]
    history = [
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "two", "tool_call_id": "call_0123456789abcdef"},
    ]
    with pytest.raises(PromptError, match="ids have 9 characters"):
        prompt_ids(tokenizer, history)
    fitted = with_fitting_ids(tokenizer, history)
    first, second = (call["id"] for call in fitted[1]["tool_calls"])
    assert (len(first), second, fitted[2]["tool_call_id"]) == (9, "abcdefgh1", first)
    assert prompt_ids(tokenizer, fitted)
    assert history[2]["tool_call_id"] == "call_0123456789abcdef"


def test_what_a_template_writes_into_the_answer_is_known():
    user = [{"role": "user", "content": "Hello"}]
    qwen = tokenizer_with(real_template("qwen3"))
    assert answer_opening(qwen, user, {}).endswith("assistant")
    assert answer_opening(qwen, user, {"enable_thinking": False}).endswith("</think>")
    assert answer_opening(tokenizer_with(real_template("deepseek_r1_distill")), user, {}).endswith("<think>")


@pytest.mark.parametrize("style", ["tagged", "json"])
def test_a_forced_call_begins_as_the_model_would_begin_it(style):
    arguments = '{"a": 1}}' + ("\n</tool_call>" if style == "tagged" else "")
    assert parsed(forced_call(style, "add") + arguments, 5, calls=style) == ("", "", [("add", {"a": 1})])
    key = "arguments" if style == "tagged" else "parameters"
    text = forced_call(style, None) + f'add", "{key}": ' + arguments
    assert parsed(text, 5, calls=style) == ("", "", [("add", {"a": 1})])
