"""ChatLLMA and LLMA: what users of other local models suffer from, references on every way, tools, many at once."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_core.tracers import BaseTracer
from pydantic import BaseModel, ValidationError

from llma_rag.engine import Engine
from llma_rag.errors import PromptError, RequestTimeoutError
from llma_rag.langchain import LLMA, ChatLLMA
from llma_rag.sharing import EngineSpec, forget_engines, loaded_engine, shared_engine
from tests.scripted_engine import real_template, scripted_engine
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

QUESTION = "When does the museum open?"


@pytest.fixture(scope="module")
def engine():
    tokenizer = tiny_tokenizer()
    made = Engine(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, name="tiny")
    made.eos_ids = frozenset()  # a random model would end anywhere
    return made


@pytest.fixture(scope="module")
def chat(engine):
    return ChatLLMA(model="tiny", engine=engine, max_tokens=40)


@pytest.fixture(scope="module")
def llm(engine):
    return LLMA(model="tiny", engine=engine, max_tokens=40)


def joined(chunks):
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    return total


async def collected(stream):
    return [chunk async for chunk in stream]


# -- one text, on every way -----------------------------------------------------------------------------


async def test_every_way_of_asking_gives_the_same_text(chat, llm):
    said = chat.invoke(QUESTION)
    assert said.content
    assert joined(chat.stream(QUESTION)).content == said.content
    assert (await chat.ainvoke(QUESTION)).content == said.content
    assert joined(await collected(chat.astream(QUESTION))).content == said.content
    assert [one.content for one in chat.batch([QUESTION] * 3)] == [said.content] * 3
    assert [one.content for one in await chat.abatch([QUESTION] * 3)] == [said.content] * 3
    completed = llm.invoke(QUESTION)
    assert "".join(llm.stream(QUESTION)) == completed == await llm.ainvoke(QUESTION)
    assert "".join(await collected(llm.astream(QUESTION))) == completed
    assert llm.batch([QUESTION, TEXT]) == await llm.abatch([QUESTION, TEXT]) == [completed, llm.invoke(TEXT)]


def test_the_prompt_is_not_part_of_the_answer(chat, llm, engine):
    assert QUESTION not in chat.invoke(QUESTION).content
    assert not llm.invoke(QUESTION).startswith(QUESTION)
    prompt = [{"role": "user", "content": QUESTION}]
    assert chat.invoke(QUESTION).content == engine.generate(prompt, max_tokens=40, draft=False).text


def test_a_stop_string_of_several_tokens_ends_every_kind_of_answer(chat):
    whole = chat.invoke(QUESTION).content
    stop = whole[10:16]
    expected = whole[: whole.index(stop)]
    assert chat.invoke(QUESTION, stop=[stop]).content == expected
    assert joined(chat.stream(QUESTION, stop=[stop])).content == expected
    bound = ChatLLMA(model="tiny", engine=chat.engine, max_tokens=40, stop_sequences=[stop])
    answer = bound.invoke(QUESTION)
    assert (answer.content, answer.response_metadata["finish_reason"]) == (expected, "stop")


def test_usage_finish_reason_and_evidence_come_with_every_answer(chat, engine):
    messages = [{"role": "user", "content": QUESTION}]
    for answer in (chat.invoke(QUESTION), joined(chat.stream(QUESTION))):
        assert answer.usage_metadata["input_tokens"] == engine.count_tokens(messages)
        assert answer.usage_metadata["output_tokens"] == 40
        metadata = answer.response_metadata
        assert (metadata["finish_reason"], metadata["model_name"], metadata["exact"]) == (
            "length",
            "tiny",
            True,
        )
        assert metadata["forward_passes"] + metadata["accepted_tokens"] == 40
        json.dumps(metadata)
    chunks = list(chat.stream(QUESTION))
    assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
    result = chat.generate([[HumanMessage(QUESTION)]])
    assert result.generations[0][0].generation_info["finish_reason"] == "length"


async def test_usage_survives_events(chat):
    events = [event async for event in chat.astream_events(QUESTION, version="v2")]
    end = events[-1]["data"]["output"]
    assert end.usage_metadata["output_tokens"] == 40
    assert end.response_metadata["forward_passes"]


def test_max_tokens_are_kept_by_call_and_by_constructor(chat, engine):
    assert chat.invoke(QUESTION, max_tokens=5).usage_metadata["output_tokens"] == 5
    assert ChatLLMA(model="tiny", engine=engine).max_tokens == 512
    long = ChatLLMA(model="tiny", engine=engine, max_tokens=None).invoke(QUESTION)
    assert long.usage_metadata["total_tokens"] == engine.runner.context_length


@pytest.mark.parametrize(
    "last",
    [
        AIMessage("At nine."),
        ToolMessage("nine", tool_call_id="1"),
        ChatMessage(role="critic", content="And?"),
    ],
)
def test_any_message_may_come_last(chat, last):
    assert chat.invoke([SystemMessage("Be brief."), HumanMessage(QUESTION), last]).content


def test_content_in_blocks_is_read_and_pictures_are_refused(chat):
    blocks = [{"type": "text", "text": QUESTION}]
    assert chat.invoke([HumanMessage(blocks)]).content == chat.invoke(QUESTION).content
    with pytest.raises(ValueError, match="reads text only, got a block of type 'image_url'"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.7}, ValueError, "temperature must be 0, got 0.7"),
        (
            {"top_p": 0.5},
            TypeError,
            "unknown argument top_p \\(here: nothing, decoding is greedy\\); there are bad_words, draft, max_tokens",
        ),
        ({"timeout": -1}, ValueError, "timeout must be more than 0"),
        ({"references": "text"}, TypeError, "references must be a list"),
        ({"references": [7]}, TypeError, "a reference must be a string"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(chat, llm, arguments, error, message):
    for model in (chat, llm):
        with pytest.raises(error, match=message):
            model.invoke(QUESTION, **arguments)


def test_constructors_refuse_what_they_do_not_know():
    for kind in (ChatLLMA, LLMA):
        with pytest.raises(ValidationError, match="temperature must be 0"):
            kind(model="tiny", temperature=1)
        with pytest.raises(ValidationError, match="pipeline_kwargs"):
            kind(model="tiny", pipeline_kwargs={})


@pytest.mark.parametrize("kind", [ChatLLMA, LLMA])
def test_settings_of_other_classes_are_translated_or_named(kind):
    assert kind(model="m", device=1).device == "cuda:1"
    assert kind(model="m", device=-1).device == "cpu"
    assert kind(model="m", device=torch.device("cpu"), dtype=torch.bfloat16).dtype == "bfloat16"
    for settings, message in (
        ({"max_new_tokens": 5}, r"unknown setting max_new_tokens \(here: max_tokens\); there are .*width"),
        (
            {"modle_kwargs": {}, "zzz": 1},
            r"unknown settings modle_kwargs \(here: model_kwargs\), zzz; there are",
        ),
        (
            {"engine": "pipe"},
            r"engine must be an llma_rag.Engine, got str; make one with Engine\(model, tokenizer\)",
        ),
    ):
        with pytest.raises(ValidationError, match=message):
            kind(model="m", **settings)


def test_no_messages_are_an_error(chat):
    with pytest.raises(PromptError, match="the prompt is empty"):
        chat.invoke([])


def test_an_error_in_the_model_reaches_the_caller_at_once(chat, engine, monkeypatch):
    monkeypatch.setattr(engine.runner, "prefill", lambda *_, **__: 1 / 0)
    for ask in (chat.invoke, lambda question: list(chat.stream(question))):
        with pytest.raises(ZeroDivisionError):
            ask(QUESTION)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(chat.ainvoke(QUESTION))


def test_a_time_out_ends_the_answer_between_steps(chat):
    with pytest.raises(RequestTimeoutError, match="not complete after 1e-06 seconds"):
        chat.invoke(QUESTION, timeout=1e-6)
    assert chat.invoke(QUESTION, timeout=60).content


def test_tokens_are_counted_by_the_models_tokenizer(chat, engine):
    assert chat.get_num_tokens("The museum") == len(engine.tokenizer("The museum").input_ids)
    messages = [HumanMessage(QUESTION)]
    assert chat.get_num_tokens_from_messages(messages) == chat.invoke(messages).usage_metadata["input_tokens"]


def test_the_profile_says_what_the_loaded_model_can_do(chat):
    assert chat.profile["max_input_tokens"] == 1024
    assert chat.profile["tool_calling"] is False
    assert ChatLLMA(model="not loaded").profile is None


def test_traces_name_provider_and_model(chat):
    params = chat._get_ls_params(stop=["x"])
    assert (params["ls_provider"], params["ls_model_name"], params["ls_max_tokens"]) == (
        "llma_rag",
        "tiny",
        40,
    )


# -- weights --------------------------------------------------------------------------------------------


def test_instances_of_one_model_share_its_weights_loaded_on_first_use(tiny_folder):
    one, other = (ChatLLMA(model=str(tiny_folder), max_tokens=n) for n in (3, 4))
    assert loaded_engine(one._spec) is None
    threads = [threading.Thread(target=one.invoke, args=[QUESTION]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other._engine({}) is one._engine({}) is shared_engine(EngineSpec(str(tiny_folder)))
    assert asyncio.run(LLMA(model=str(tiny_folder), max_tokens=3).ainvoke("The museum")) is not None
    assert one.invoke(QUESTION, model=str(tiny_folder)).content == one.invoke(QUESTION).content
    forget_engines()
    assert loaded_engine(one._spec) is None


# -- references -----------------------------------------------------------------------------------------


def passes(answer):
    return answer.response_metadata["forward_passes"]


@pytest.mark.parametrize("kind", ["text", "document", "mapping"])
def test_references_of_every_kind_save_passes_and_change_nothing(chat, kind):
    plain = chat.invoke(QUESTION)
    reference = {
        "text": plain.content,
        "document": Document(plain.content, metadata={"source": "a.pdf"}),
        "mapping": {"page_content": plain.content, "metadata": {"source": "a.pdf"}, "type": "Document"},
    }[kind]
    ways = [
        chat.bind(references=[reference]).invoke(QUESTION),
        ChatLLMA(model="tiny", engine=chat.engine, max_tokens=40, references=[reference]).invoke(QUESTION),
        joined(chat.stream(QUESTION, references=[reference])),
    ]
    for answer in ways:
        assert answer.content == plain.content
        assert passes(answer) < passes(plain)
        (span,) = answer.response_metadata["copied_spans"]
        assert (span["start"], span["end"]) == (0, len(plain.content))
        assert span["metadata"] == ({} if kind == "text" else {"source": "a.pdf"})


def test_what_a_retriever_tool_left_is_a_reference(chat):
    for artifact in (lambda text: [Document(text)], lambda text: [Document(text).model_dump()]):
        messages = [
            HumanMessage(QUESTION),
            ToolMessage("found", tool_call_id="1", artifact={"no": "document"}),
        ]
        plain = chat.invoke(messages)
        messages[-1] = ToolMessage("found", tool_call_id="1", artifact=artifact(plain.content))
        assert passes(chat.invoke(messages)) < passes(plain)


def test_each_item_of_a_batch_has_its_own_references(chat):
    questions = [QUESTION, "Who pays at the desk?", "What costs 7 euro?"]
    plain = [chat.invoke(question) for question in questions]
    bound = [chat.bind(references=[answer.content]) for answer in plain]
    drafted = [model.invoke(question) for model, question in zip(bound, questions, strict=True)]
    for one, two in zip(plain, drafted, strict=True):
        assert one.content == two.content
        assert passes(two) < passes(one)


class Recorder(BaseTracer):
    """Keeps what a trace would hold."""

    def __init__(self):
        super().__init__()
        self.runs = []

    def _persist_run(self, run):
        self.runs.append(run.model_dump_json() if hasattr(run, "model_dump_json") else run.json())


async def test_references_enter_neither_traces_nor_cache_keys(chat, llm):
    secret = "a very secret document that no trace may hold"
    for model in (chat, llm):
        tracer = Recorder()
        config = {"callbacks": [tracer]}
        bound = model.bind(references=[secret])
        bound.invoke(QUESTION, config)
        list(bound.stream(QUESTION, config))
        await bound.ainvoke(QUESTION, config)
        await collected(bound.astream(QUESTION, config))
        assert len(tracer.runs) == 4
        assert not any("secret" in run for run in tracer.runs)
    assert "secret" not in chat._get_llm_string(references=[secret])
    assert chat._get_llm_string(references=[secret]) == chat._get_llm_string()


def test_caches_go_by_what_an_answer_depends_on(chat):
    for other in (
        {"max_tokens": 7},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"model_kwargs": {"revision": "b"}},
        {"stop": ["x"]},
    ):
        assert chat.model_copy(update=other)._get_llm_string() != chat._get_llm_string()


def test_a_cached_answer_serves_calls_with_and_without_references(chat, llm):
    set_llm_cache(cache := InMemoryCache())
    try:
        for model in (chat, llm):
            one = model.invoke(QUESTION)
            assert model.bind(references=[TEXT]).invoke(QUESTION) is not None
            assert len(cache._cache) == 1
            assert model.invoke(QUESTION, references=["other"]) == one or model is chat
            model.invoke(QUESTION, max_tokens=3)
            assert len(cache._cache) == 2
            cache.clear()
    finally:
        set_llm_cache(None)


async def test_a_cached_completion_has_the_copied_spans_of_its_own_call(llm):
    set_llm_cache(InMemoryCache())
    try:
        ((first,),) = llm.generate([QUESTION], references=["other"]).generations
        assert first.generation_info["forward_passes"]
        own = {"references": [Document(first.text, metadata={"source": "own"})]}
        for result in (llm.generate([QUESTION], **own), await llm.agenerate([QUESTION], **own)):
            ((cached,),) = result.generations
            (span,) = cached.generation_info["copied_spans"]
            assert (span["metadata"], span["end"]) == ({"source": "own"}, len(first.text))
            assert "forward_passes" not in cached.generation_info
    finally:
        set_llm_cache(None)


async def test_a_streaming_completion_tells_callbacks_of_every_token(llm):
    for streaming in (True, False):
        model, callback = llm.model_copy(update={"streaming": streaming}), Tokens()
        text = model.invoke(QUESTION, {"callbacks": [callback]})
        assert await model.ainvoke(QUESTION, {"callbacks": [callback]}) == text
        assert "".join(callback.tokens) == text * 2 * streaming


def test_neither_caches_nor_traces_hold_a_hub_token(chat):
    for model in (chat, LLMA(model="m", model_kwargs={"token": "hf_secret", "revision": "b"})):
        model = model.model_copy(update={"model_kwargs": {"token": "hf_secret", "revision": "b"}})
        assert "hf_secret" not in str(model._identifying_params)
        assert "revision" in str(model._identifying_params)


async def test_a_cached_answer_has_the_copied_spans_of_its_own_call(chat):
    set_llm_cache(InMemoryCache())
    try:
        first = chat.invoke(QUESTION, references=["other"])
        answer = first.text
        for cached in (
            chat.invoke(QUESTION, references=["x", Document(answer, metadata={"source": "own"})]),
            await chat.ainvoke(QUESTION, references=["x", Document(answer, metadata={"source": "own"})]),
        ):
            assert cached.text == answer
            (span,) = cached.response_metadata["copied_spans"]
            assert (span["start"], span["end"], span["reference_index"]) == (0, len(answer), 1)
            assert span["metadata"] == {"source": "own"}
            assert "decode_s" not in cached.response_metadata
            assert cached.response_metadata["finish_reason"] == first.response_metadata["finish_reason"]
        assert chat.invoke(QUESTION).response_metadata["copied_spans"] == []
        assert "decode_s" in first.response_metadata
    finally:
        set_llm_cache(None)


# -- callbacks, many at once ----------------------------------------------------------------------------


class Tokens(BaseCallbackHandler):
    def __init__(self):
        self.tokens = []

    def on_llm_new_token(self, token, **kwargs):
        self.tokens.append(token)


def test_callbacks_hear_each_piece_once(chat, llm):
    for model, text in ((chat, chat.invoke(QUESTION).content), (llm, llm.invoke(QUESTION))):
        handler = Tokens()
        list(model.stream(QUESTION, {"callbacks": [handler]}))
        assert "".join(handler.tokens) == text
    handler = Tokens()
    streaming = ChatLLMA(model="tiny", engine=chat.engine, max_tokens=40, streaming=True)
    streaming.invoke(QUESTION, {"callbacks": [handler]})
    assert "".join(handler.tokens) == chat.invoke(QUESTION).content


async def test_the_event_loop_goes_on_while_the_model_works(chat):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await chat.ainvoke(QUESTION, max_tokens=200)
    ticking.cancel()
    assert ticks > 20


async def test_sixteen_streams_of_which_four_are_cancelled(chat):
    questions = [f"{QUESTION} {n}" for n in range(16)]
    alone = [(await chat.ainvoke(question, max_tokens=60)).content for question in questions]
    threads = threading.active_count()

    async def ask(number):
        pieces = []
        async for chunk in chat.astream(questions[number], max_tokens=60):
            pieces.append(chunk.content)
            if number % 4 == 1 and len(pieces) == 5:
                break  # closes the generator
        return "".join(pieces)

    tasks = [asyncio.create_task(ask(number)) for number in range(16)]
    await asyncio.sleep(0.05)
    tasks[2].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number == 2:
            assert isinstance(answer, asyncio.CancelledError) or answer == alone[number]
        elif number % 4 == 1:
            assert alone[number].startswith(answer)
        else:
            assert answer == alone[number]
    assert (await chat.ainvoke(questions[0], max_tokens=60)).content == alone[0]
    assert threading.active_count() == threads


@pytest.mark.parametrize("how", ["close", "cancel", "drop"])
async def test_an_abandoned_stream_frees_the_model_at_once(chat, engine, monkeypatch, how):
    verified = []
    verify = type(engine.runner).verify
    monkeypatch.setattr(
        type(engine.runner), "verify", lambda *arguments: verified.append(1) or verify(*arguments)
    )
    stream = chat.astream(QUESTION, max_tokens=900, references=[])
    await anext(stream)
    if how == "close":
        await stream.aclose()
    elif how == "cancel":
        waiting = asyncio.create_task(collected(stream))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    del stream
    await asyncio.sleep(0.05)  # a few turns of the loop, which finalizes the generators
    count = len(verified)
    await chat.ainvoke(QUESTION, max_tokens=1)
    assert len(verified) == count < 200


# -- reasoning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["qwen3", "deepseek_r1_distill"])
async def test_reasoning_is_kept_apart_from_the_answer(template):
    opened = template == "deepseek_r1_distill"
    text = ("" if opened else "<think>\n") + "The sign says nine.\n</think>\n\nAt nine."
    chat = ChatLLMA(model="x", engine=scripted_engine(text, real_template(template)))
    for answer in (chat.invoke(QUESTION), joined(chat.stream(QUESTION)), await chat.ainvoke(QUESTION)):
        assert answer.content == "At nine."
        assert answer.additional_kwargs["reasoning_content"] == "The sign says nine."
    history = [HumanMessage(QUESTION), answer, HumanMessage("Sure?")]
    assert chat.invoke(history).content == "At nine."


def test_arguments_of_the_template_are_passed_on():
    engine = scripted_engine("At nine.", real_template("qwen3"))
    chat = ChatLLMA(model="x", engine=engine, chat_template_kwargs={"enable_thinking": False})
    chat.invoke(QUESTION)
    assert engine.runner.prompts[-1].endswith("<think>\n\n</think>\n\n")
    chat.invoke(QUESTION, chat_template_kwargs={"enable_thinking": True})
    assert engine.runner.prompts[-1].endswith("assistant\n")
    with pytest.raises(PromptError, match="may not set tokenize"):
        chat.invoke(QUESTION, chat_template_kwargs={"tokenize": False})


# -- tools ----------------------------------------------------------------------------------------------


@tool
def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"rain in {city}"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Person(BaseModel):
    """A person."""

    name: str
    age: int


CALLS = {
    "qwen3": lambda name, arguments: (
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    ),
    "llama3_1": lambda name, arguments: json.dumps({"name": name, "parameters": arguments}),
}


@pytest.fixture(params=["qwen3", "llama3_1"])
def family(request):
    return request.param


def chat_that_says(family, reply):
    engine = scripted_engine(reply, real_template(family))
    return ChatLLMA(model="x", engine=engine), engine


async def test_a_call_is_parsed_and_its_tool_is_shown(family):
    chat, engine = chat_that_says(family, CALLS[family]("weather", {"city": "Rome"}))
    bound = chat.bind_tools([weather, add])
    ways = [
        bound.invoke(QUESTION),
        await bound.ainvoke(QUESTION),
        joined(bound.stream(QUESTION)),
        joined(await collected(bound.astream(QUESTION))),
    ]
    for answer in ways:
        (call,) = answer.tool_calls
        assert (call["name"], call["args"], answer.content) == ("weather", {"city": "Rome"}, "")
        assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert "Return the weather in a city." in engine.runner.prompts[-1]
    assert chat.invoke(QUESTION).tool_calls == []  # no tools, no calls


def test_text_beside_tools_stays_text(family):
    chat, _ = chat_that_says(family, "It rains {sometimes}.")
    answer = chat.bind_tools([weather]).invoke(QUESTION)
    assert (answer.content, answer.tool_calls) == ("It rains {sometimes}.", [])


def test_two_calls_come_in_order():
    text = (
        "First this.\n"
        + CALLS["qwen3"]("add", {"a": 1, "b": 2})
        + "\n"
        + CALLS["qwen3"]("weather", {"city": "Bern"})
    )
    chat, _ = chat_that_says("qwen3", text)
    for answer in (
        chat.bind_tools([weather, add]).invoke(QUESTION),
        joined(chat.bind_tools([weather, add]).stream(QUESTION)),
    ):
        assert [call["name"] for call in answer.tool_calls] == ["add", "weather"]
        assert answer.content == "First this."
        assert len({call["id"] for call in answer.tool_calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1,}}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": {"a": 1',  # cut off
        '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>',
        "<tool_call>\nadd 1\n</tool_call>",
    ],
)
def test_a_call_that_is_no_json_is_told_as_such(text):
    bound = chat_that_says("qwen3", text)[0].bind_tools([add])
    for answer in (bound.invoke(QUESTION), joined(bound.stream(QUESTION))):
        assert answer.tool_calls == []
        (invalid,) = answer.invalid_tool_calls
        assert invalid["name"] == ("add" if '"add"' in text else "")


@pytest.mark.parametrize(
    "choice", ["any", "required", True, "add", {"type": "function", "function": {"name": "add"}}]
)
def test_a_call_that_is_asked_for_begins_the_answer(family, choice):
    ending = {"qwen3": "\n</tool_call>", "llama3_1": ""}[family]
    chat, engine = chat_that_says(family, '{"a": 1, "b": 2}}' + ending)
    for answer in (
        chat.bind_tools([add], tool_choice=choice).invoke(QUESTION),
        joined(chat.bind_tools([add], tool_choice=choice).stream(QUESTION)),
    ):
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert engine.runner.prompts[-1].endswith(
        f'"add", "{"arguments" if family == "qwen3" else "parameters"}": '
    )


def test_other_choices_are_kept_or_refused(family):
    chat, engine = chat_that_says(family, "Fine.")
    chat.bind_tools([add], tool_choice="none").invoke(QUESTION)
    assert "Add two numbers." not in engine.runner.prompts[-1]
    chat.bind_tools([add], tool_choice="auto").invoke(QUESTION)
    assert "Add two numbers." in engine.runner.prompts[-1]
    with pytest.raises(ValueError, match="tool_choice must be auto, none, any or one of add, got 'subtract'"):
        chat.bind_tools([add], tool_choice="subtract")


def test_calls_and_results_of_the_history_are_rendered(family):
    chat, engine = chat_that_says(family, "It rains.")
    call = {"name": "weather", "args": {"city": "Rome"}, "id": "call_1"}
    history = [
        HumanMessage("Weather?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("rain in Rome", tool_call_id="call_1"),
    ]
    assert chat.bind_tools([weather]).invoke(history).content == "It rains."
    prompt = engine.runner.prompts[-1]
    assert prompt.index('"name": "weather"') < prompt.index("rain in Rome")
    assert '{"city": "Rome"}' in prompt


@pytest.mark.parametrize("include_raw", [False, True])
def test_structured_output_is_an_object(family, include_raw):
    ending = {"qwen3": "\n</tool_call>", "llama3_1": ""}[family]
    chat, _ = chat_that_says(family, '{"name": "Ann", "age": 7}}' + ending)
    found = chat.with_structured_output(Person, include_raw=include_raw).invoke(QUESTION)
    assert (found["parsed"] if include_raw else found) == Person(name="Ann", age=7)


def test_a_template_without_tools_is_named(chat):
    with pytest.raises(PromptError, match="the chat template of tiny takes no tools"):
        chat.bind_tools([add]).invoke(QUESTION)


def test_tools_are_counted(family):
    chat, _ = chat_that_says(family, "x")
    messages = [HumanMessage(QUESTION)]
    assert chat.get_num_tokens_from_messages(messages, tools=[add]) > chat.get_num_tokens_from_messages(
        messages
    )


def test_a_prompt_template_and_a_chat_model_make_a_chain(chat):
    chain = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{question}")]) | chat
    answer = chain.invoke({"context": TEXT, "question": QUESTION})
    assert isinstance(answer, AIMessage)
    assert isinstance(next(chain.stream({"context": TEXT, "question": QUESTION})), AIMessageChunk)
