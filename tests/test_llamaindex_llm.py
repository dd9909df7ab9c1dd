"""LlamaIndex's LLM: every way of asking, engines of every kind, events, tools, references on every way."""

from __future__ import annotations

import asyncio
import json
import pickle
from contextlib import contextmanager

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
)
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, ValidationError

from llma_rag.engine import Engine
from llma_rag.llamaindex import (
    LLMA,
    AnswerMemory,
    FaissVectorStore,
    FiguresHandler,
    ReferencePostprocessor,
    ReferenceSynthesizer,
    copied_from_sources,
)
from tests.letters import LetterEmbedder
from tests.scripted_engine import real_template, scripted_engine
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

QUESTION = "When does the museum open?"
MESSAGES = [ChatMessage(role="system", content="Be brief."), ChatMessage(content=QUESTION)]
TEXTS = [
    "The museum opens at nine and closes at five, on every day of the week but Monday.",
    "Groups pay at the desk by the entrance, in cash or by card, before they go in.",
]


class LetterEmbedding(BaseEmbedding):
    """Counts letters, quickly; ours for LlamaIndex's interface."""

    model_name: str = "letters"

    def _get_text_embedding(self, text):
        return LetterEmbedder().embed_query(text).tolist()

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


@pytest.fixture(scope="module")
def engine():
    tokenizer = tiny_tokenizer()
    made = Engine(
        tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=8192), tokenizer, name="tiny"
    )
    made.eos_ids = frozenset()  # a random model would end anywhere
    return made


@pytest.fixture
def llm(engine):
    return LLMA(model="tiny", engine=engine, max_tokens=30)


@pytest.fixture
def seen(monkeypatch):
    """The references of each request that reaches the engine."""
    requests = []
    request = Engine._request

    def recorded(self, prompt, options):
        requests.append([one.text for one in options["references"]])
        return request(self, prompt, options)

    monkeypatch.setattr(Engine, "_request", recorded)
    return requests


@contextmanager
def callbacks(*handlers):
    """Set handlers as LlamaIndex's users do; engines give them to their model."""
    before, Settings.callback_manager = Settings.callback_manager, CallbackManager([*handlers])
    try:
        yield
    finally:
        Settings.callback_manager = before


@pytest.fixture
def counter():
    with callbacks(handler := TokenCountingHandler(tokenizer=str.split)):
        yield handler


async def collected(stream):
    return [one async for one in stream]


# -- the model itself -----------------------------------------------------------------------------------


async def test_every_way_of_asking_gives_the_same_text(llm, engine):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    expected = engine.generate(prompt, max_tokens=30, draft=False).text
    chats = list(llm.stream_chat(MESSAGES))
    achats = await collected(await llm.astream_chat(MESSAGES))
    for answer in (llm.chat(MESSAGES), await llm.achat(MESSAGES), chats[-1], achats[-1]):
        assert answer.message.content == expected
        assert answer.message.role == MessageRole.ASSISTANT
    assert "".join(one.delta for one in chats) == "".join(one.delta for one in achats) == expected
    assert len(chats) > 3
    assert all(expected.startswith(one.message.content) for one in chats)

    expected = engine.generate(QUESTION, max_tokens=30, draft=False).text
    pieces = list(llm.stream_complete(QUESTION, formatted=True))
    apieces = await collected(await llm.astream_complete(QUESTION, formatted=True))
    whole = [llm.complete(QUESTION, formatted=True), await llm.acomplete(QUESTION, formatted=True)]
    for answer in (*whole, pieces[-1], apieces[-1]):
        assert answer.text == expected
    assert "".join(one.delta for one in pieces) == "".join(one.delta for one in apieces) == expected


def test_a_completion_goes_through_the_chat_template_unless_it_is_formatted(llm, engine):
    through = engine.generate([{"role": "user", "content": QUESTION}], max_tokens=30).text
    assert llm.complete(QUESTION).text == llm.chat([ChatMessage(content=QUESTION)]).message.content == through
    assert llm.complete(QUESTION, formatted=True).text == engine.generate(QUESTION, max_tokens=30).text
    system = LLMA(model="tiny", engine=engine, max_tokens=30, system_prompt="Be brief.")
    assert system.complete(QUESTION).text == llm.chat(MESSAGES).message.content
    assert system.predict(PromptTemplate(QUESTION)) == llm.chat(MESSAGES).message.content


def test_own_prompt_functions_take_the_templates_place(engine):
    own = LLMA(
        model="tiny",
        engine=engine,
        max_tokens=20,
        messages_to_prompt=lambda messages: "|".join(one.content for one in messages) + "|",
        completion_to_prompt=lambda prompt: f"<{prompt}>",
    )
    assert own.chat(MESSAGES).message.content == engine.generate(f"Be brief.|{QUESTION}|", max_tokens=20).text
    assert own.complete(QUESTION).text == engine.generate(f"<{QUESTION}>", max_tokens=20).text
    assert own.complete(QUESTION, formatted=True).text == engine.generate(QUESTION, max_tokens=20).text
    assert own.metadata.is_chat_model
    completing = own.model_copy(update={"messages_to_prompt": None, "system_prompt": "Sys."})
    assert not completing.metadata.is_chat_model
    expected = engine.generate(f"<Sys.\n\n{QUESTION}>", max_tokens=20).text
    assert completing.complete(QUESTION).text == expected


def test_a_model_without_a_chat_template_completes():
    engine = scripted_engine("At nine.")
    engine.tokenizer.chat_template = None
    llm = LLMA(model="base", engine=engine)
    assert not llm.metadata.is_chat_model
    assert llm.complete(QUESTION).text == llm.chat(MESSAGES).message.content == "At nine."
    assert "user: When" in engine.runner.prompts[-1]
    assert llm.predict(PromptTemplate("Q: {q}"), q="what?") == "At nine."
    assert engine.runner.prompts[-1] == "Q: what?"


def test_metadata_usage_and_figures(llm, engine):
    metadata = llm.metadata
    assert (metadata.context_window, metadata.num_output, metadata.model_name) == (8192, 30, "tiny")
    assert metadata.is_chat_model
    assert not metadata.is_function_calling_model
    for answer in (llm.chat(MESSAGES), llm.complete(QUESTION), list(llm.stream_chat(MESSAGES))[-1]):
        raw = json.loads(json.dumps(answer.raw))
        assert raw["usage"]["completion_tokens"] == 30
        assert raw["usage"]["total_tokens"] == raw["usage"]["prompt_tokens"] + 30
        assert raw["forward_passes"] + raw["accepted_tokens"] == 30
        assert (raw["exact"], raw["finish_reason"]) == (True, "length")
    assert llm.tokenizer_fn(TEXT) == engine.tokenizer(TEXT, add_special_tokens=False).input_ids
    for asked in (None, 8000):
        assert LLMA(model="tiny", engine=engine, max_tokens=asked).metadata.num_output == 4096
    with pytest.raises(TypeError, match="made with engine= cannot be pickled"):
        pickle.dumps(llm)
    assert pickle.loads(pickle.dumps(LLMA(model="m", width=8))).width == 8


def test_stop_and_the_number_of_tokens_are_kept(llm, engine):
    whole = llm.chat(MESSAGES).message.content
    stop = whole[8:12]
    expected = whole[: whole.index(stop)]
    assert llm.chat(MESSAGES, stop=[stop]).message.content == expected
    assert "".join(one.delta for one in llm.stream_chat(MESSAGES, stop=[stop])) == expected
    stopping = LLMA(model="tiny", engine=engine, max_tokens=30, stop=[stop])
    assert stopping.complete(QUESTION).text == llm.complete(QUESTION, stop=[stop]).text
    assert llm.complete(QUESTION, max_tokens=3).raw["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"temperature": 0.5}, ValueError, "temperature must be 0"),
        ({"num_beams": 2}, TypeError, "unknown argument num_beams"),
        ({"references": ["x"]}, TypeError, r"references go by with_references\(nodes\)"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1"),
    ],
)
async def test_unusable_arguments_are_errors(llm, kwargs, error, message):
    for ask in (llm.chat, llm.complete):
        with pytest.raises(error, match=message):
            ask(MESSAGES if ask == llm.chat else QUESTION, **kwargs)
    with pytest.raises(error, match=message):
        await llm.achat(MESSAGES, **kwargs)
    with pytest.raises(error, match=message):
        list(llm.stream_chat(MESSAGES, **kwargs))


def test_settings_of_other_classes_are_named():
    with pytest.raises(ValidationError, match=r"tokenizer_name \(here: nothing, the model's own is taken\)"):
        LLMA(model="m", tokenizer_name="m")
    with pytest.raises(ValidationError, match=r"context_window \(here: max_context\)"):
        LLMA(model="m", context_window=2048)


def test_pictures_are_refused(llm):
    with pytest.raises(ValueError, match="reads text only, got a block of type 'image'"):
        llm.chat([ChatMessage(blocks=[ImageBlock(url="http://x/y.png")])])


async def test_the_event_loop_goes_on_while_the_model_answers(llm):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    answers = [
        await llm.acomplete(TEXT * 3, max_tokens=200),
        await llm.achat([ChatMessage(content=TEXT * 3)], max_tokens=200),
    ]
    ticking.cancel()
    assert all(answer.raw["usage"]["completion_tokens"] == 200 for answer in answers)
    assert ticks > 10


async def test_a_stream_that_is_left_stops_the_model(llm, engine):
    for _, _piece in zip(range(2), llm.stream_chat(MESSAGES, max_tokens=5000), strict=False):
        pass
    stream = await llm.astream_chat(MESSAGES, max_tokens=5000)
    await anext(stream)
    await stream.aclose()
    assert (await llm.achat(MESSAGES)).raw["queued_s"] < 2


# -- events and counting --------------------------------------------------------------------------------


class Events(BaseEventHandler):
    names: list[str] = []  # noqa: RUF012
    dumps: list[str] = []  # noqa: RUF012

    def handle(self, event, **kwargs):
        self.names.append(event.class_name())
        self.dumps.append(str(event))


@pytest.fixture
def events():
    dispatcher = get_dispatcher()
    handler = Events(names=[], dumps=[])
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


async def test_events_fire_as_for_llamaindexs_own_models(llm, events):
    mock = MockLLM(max_tokens=30)
    for model in (llm, mock):
        events.names.clear()
        model.chat(MESSAGES)
        model.complete(QUESTION)
        await model.achat(MESSAGES)
        list(model.stream_complete(QUESTION))
        await collected(await model.astream_chat(MESSAGES))
        model.predict(PromptTemplate(QUESTION))
        heard = dict.fromkeys(events.names)
        if model is llm:
            ours, counts = heard, {name: events.names.count(name) for name in heard if "Progress" not in name}
    assert ours.keys() >= {"LLMChatStartEvent", "LLMChatEndEvent", "LLMChatInProgressEvent"}
    assert ours.keys() >= {"LLMCompletionStartEvent", "LLMCompletionEndEvent", "LLMCompletionInProgressEvent"}
    assert heard.keys() <= ours.keys()
    assert counts["LLMChatStartEvent"] == counts["LLMChatEndEvent"] == 4  # chat, achat, astream_chat, predict
    assert counts["LLMCompletionStartEvent"] == counts["LLMCompletionEndEvent"] == 2


async def test_references_are_in_no_event(llm, events):
    secret = "a very secret document that no event may hold"
    bound = llm.with_references([secret])
    bound.chat(MESSAGES)
    await bound.acomplete(QUESTION)
    list(bound.stream_chat(MESSAGES))
    assert events.dumps
    assert not any("very secret" in one for one in events.dumps)
    assert "secret" not in str(bound.to_payload()) + bound.model_dump_json()


# -- references -----------------------------------------------------------------------------------------


def test_a_copy_with_references_shares_the_weights(llm, seen):
    node = TextNode(text=TEXTS[0], metadata={"source": "a"})
    bound = llm.with_references([node, "more"])
    answer = bound.complete(QUESTION)
    assert seen == [[TEXTS[0], "more"]]
    assert answer.text == llm.complete(QUESTION).text
    assert bound.engine is llm.engine
    assert bound.with_references(["third"]).complete(QUESTION)
    assert seen[-1] == ["third", TEXTS[0], "more"]


def test_an_answer_says_what_it_copied():
    llm = LLMA(model="s", engine=scripted_engine(f"Well: {TEXTS[0]}"))
    raw = llm.with_references([TextNode(text=TEXTS[0], metadata={"source": "a.txt"})]).complete("?").raw
    (span,) = raw["copied_spans"]
    assert (span["start"], span["end"], span["metadata"]) == (6, 6 + len(TEXTS[0]), {"source": "a.txt"})


# -- engines: a matrix ----------------------------------------------------------------------------------

ROWS: list[tuple[str, ...]] = []


@pytest.fixture(scope="module")
def index():
    store = FaissVectorStore(embed_model=LetterEmbedding())
    made = VectorStoreIndex.from_vector_store(store, embed_model=LetterEmbedding())
    made.insert_nodes([TextNode(text=text, id_=f"n{number}") for number, text in enumerate(TEXTS)])
    return made


def query_engine(index, llm, way, streaming, kind):
    synthesizer = None
    if way == "synthesizer":
        template = {}
        if kind is CitationQueryEngine:
            from llama_index.core.query_engine.citation_query_engine import CITATION_QA_TEMPLATE

            template = {"text_qa_template": CITATION_QA_TEMPLATE}
        synthesizer = ReferenceSynthesizer(llm=llm, streaming=streaming, **template)
    postprocessors = [ReferencePostprocessor()] if way == "postprocessor" else []
    if kind is CitationQueryEngine:
        return CitationQueryEngine.from_args(
            index,
            llm=llm,
            streaming=streaming,
            similarity_top_k=2,
            response_synthesizer=synthesizer,
            node_postprocessors=postprocessors,
        )
    return RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=2),
        llm=llm,
        streaming=streaming,
        response_synthesizer=synthesizer,
        node_postprocessors=postprocessors,
    )


def memory():
    return ChatMemoryBuffer.from_defaults(token_limit=4000)  # the default one leaves a database open


def chat_engine(index, llm, way, kind):
    if kind is CondenseQuestionChatEngine:
        inner = query_engine(index, llm, way, False, RetrieverQueryEngine)
        return CondenseQuestionChatEngine.from_defaults(inner, llm=llm, memory=memory())
    postprocessors = [ReferencePostprocessor()] if way == "postprocessor" else []
    return kind.from_defaults(
        index.as_retriever(similarity_top_k=2), llm=llm, node_postprocessors=postprocessors, memory=memory()
    )


async def asked(engine, question, ways):
    """Return the text of an answer, asked for in one of the ways."""
    is_async, streaming = ways
    if isinstance(engine, RetrieverQueryEngine | CitationQueryEngine):
        response = await engine.aquery(question) if is_async else engine.query(question)
        if streaming:
            pieces = (
                [one async for one in response.async_response_gen()]
                if is_async
                else list(response.response_gen)
            )
            assert len(pieces) > 3
            return "".join(pieces)
        return str(response)
    if not streaming:
        return str(await engine.achat(question) if is_async else engine.chat(question))
    if is_async:
        response = await engine.astream_chat(question)
        pieces = [one async for one in response.async_response_gen()]
    else:
        pieces = list(engine.stream_chat(question).response_gen)
    assert len(pieces) > 3
    return "".join(pieces)


WAYS = [
    pytest.param((is_async, streaming), id=f"{'async' if is_async else 'sync'}-{'streaming' if streaming else 'plain'}")
    for is_async in (False, True)
    for streaming in (False, True)
]  # fmt: skip


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("way", ["synthesizer", "postprocessor"])
@pytest.mark.parametrize("kind", [RetrieverQueryEngine, CitationQueryEngine])
async def test_query_engines(engine, index, seen, counter, kind, way, ways):
    llm = LLMA(model="tiny", engine=engine, max_tokens=30)
    expected = await asked(query_engine(index, llm, "none", ways[1], kind), QUESTION, ways)
    assert seen == [[]]
    counter.reset_counts()
    text = await asked(query_engine(index, llm, way, ways[1], kind), QUESTION, ways)
    assert text == expected
    assert len(seen) == 2
    found = [text.split("\n", 1)[-1] if kind is CitationQueryEngine else text for text in seen[1]]
    assert sorted(one.strip() for one in found) == sorted(TEXTS)
    assert [one.completion_token_count for one in counter.llm_token_counts] == [30]
    row(kind, way, ways, "text right, references arrived, counted once")


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("way", ["synthesizer", "postprocessor"])
@pytest.mark.parametrize(
    "kind", [ContextChatEngine, CondenseQuestionChatEngine, CondensePlusContextChatEngine]
)
async def test_chat_engines(engine, index, seen, counter, kind, way, ways):
    if way == "synthesizer" and kind is not CondenseQuestionChatEngine:
        pytest.skip("these engines make their synthesizer themselves: the postprocessor is the way")
    llm = LLMA(model="tiny", engine=engine, max_tokens=30)
    plain, ours = chat_engine(index, llm, "none", kind), chat_engine(index, llm, way, kind)
    expected = [await asked(plain, question, ways) for question in (QUESTION, "And groups?")]
    assert not any(seen)
    calls = len(seen)
    counter.reset_counts()
    assert [await asked(ours, question, ways) for question in (QUESTION, "And groups?")] == expected
    of_ours = seen[calls:]
    assert len(of_ours) == calls
    condenses = kind is not ContextChatEngine
    answering = [of_ours[0], of_ours[-1]]
    assert all(sorted(one) == sorted(TEXTS) for one in answering)
    if condenses:
        assert of_ours[1:-1] == [[]]  # what the last turn has retrieved is gone
    assert len(counter.llm_token_counts) == calls
    row(kind, way, ways, "text right, references arrived and cleared, counted once")


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("kind", ["complete", "chat"])
async def test_bare_model(engine, seen, counter, kind, ways):
    llm = LLMA(model="tiny", engine=engine, max_tokens=30)
    expected = llm.chat(MESSAGES).message.content if kind == "chat" else llm.complete(QUESTION).text
    counter.reset_counts()
    is_async, streaming = ways
    prefix = ("a" if is_async else "") + ("stream_" if streaming else "")
    answer = getattr(llm.with_references(TEXTS), prefix + kind)(MESSAGES if kind == "chat" else QUESTION)
    if is_async:
        answer = await answer
    if streaming:
        answer = (await collected(answer) if is_async else list(answer))[-1]
    assert (answer.message.content if kind == "chat" else answer.text) == expected
    assert seen == [[], TEXTS]
    assert [one.completion_token_count for one in counter.llm_token_counts] == [30]
    row(kind, "with_references", ways, "text right, references arrived, counted once")


def row(kind, way, ways, outcome):
    name = kind if isinstance(kind, str) else kind.__name__
    is_async, streaming = ways
    ROWS.append((name, way, "async" if is_async else "sync", "streaming" if streaming else "plain", outcome))


def test_print_the_matrix(capsys):
    with capsys.disabled():
        print()
        for one in ROWS:
            print("{:30} {:16} {:6} {:10} {}".format(*one))


# -- synthesizer and postprocessor ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(ResponseMode))
def test_the_synthesizer_works_in_every_mode(engine, index, seen, mode):
    if mode in (ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY):
        pytest.skip("these ask no model")
    llm = LLMA(model="tiny", engine=engine, max_tokens=10)
    nodes = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
    expected = get_response_synthesizer(llm, response_mode=mode).synthesize(QUESTION, nodes)
    calls = len(seen)
    response = ReferenceSynthesizer(llm=llm, response_mode=mode).synthesize(QUESTION, nodes)
    assert str(response) == str(expected)
    assert [sorted(one) for one in seen[calls:]] == [sorted(TEXTS)] * calls
    assert response.source_nodes == expected.source_nodes


def test_the_synthesizer_hands_prompts_and_callbacks_to_the_one_inside(engine, index):
    inner = get_response_synthesizer(LLMA(model="tiny", engine=engine, max_tokens=5))
    outer = ReferenceSynthesizer(inner)
    template = PromptTemplate("Only this: {context_str} {query_str}")
    outer.update_prompts({"text_qa_template": template})
    assert inner.get_prompts().keys() == outer.get_prompts().keys()
    assert inner.get_prompts()["text_qa_template"].template == template.template
    outer.callback_manager = manager = CallbackManager([])
    assert inner.callback_manager is manager
    assert outer.get_response(QUESTION, TEXTS) == inner.get_response(QUESTION, TEXTS)


def test_what_does_not_fit_is_an_error(engine):
    with pytest.raises(TypeError, match=r"must be an LLMA of .*, got MockLLM"):
        ReferenceSynthesizer(llm=MockLLM())
    with pytest.raises(TypeError, match="memory must be an AnswerMemory, got str"):
        ReferenceSynthesizer(llm=LLMA(model="tiny", engine=engine), memory="folder")
    with pytest.raises(ValidationError, match="mem"):
        ReferencePostprocessor(mem=None)
    with pytest.raises(TypeError, match="a response of a query or chat engine is needed, got str"):
        copied_from_sources("text")
    with pytest.raises(ValidationError, match="max_tokens"):
        LLMA(model="tiny", max_tokens=-1)
    with pytest.raises(TypeError, match="streaming would have no effect"):
        ReferenceSynthesizer(get_response_synthesizer(MockLLM()), streaming=True)


async def test_earlier_answers_serve_drafts(engine, index, seen):
    memory = AnswerMemory(LetterEmbedding())
    llm = LLMA(model="tiny", engine=engine, max_tokens=30)
    for streaming in (False, True):
        synthesizer = ReferenceSynthesizer(llm=llm, streaming=streaming, memory=memory)
        asking = RetrieverQueryEngine(index.as_retriever(similarity_top_k=2), synthesizer)
        answer = str(asking.query(QUESTION))
        assert memory.nearest(QUESTION)[0].text == answer
        response = await asking.aquery("When will the museum open?")
        if streaming:
            assert "".join([one async for one in response.async_response_gen()])
        assert answer in seen[-1]
        assert len(memory) == 2
    assert str(synthesizer.synthesize(QUESTION, [])) == "Empty Response"
    assert memory.nearest(QUESTION)[0].text == answer
    postprocessor = ReferencePostprocessor(memory=memory)
    asking = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=2), llm=llm, node_postprocessors=[postprocessor]
    )
    asking.query(QUESTION)
    assert answer in seen[-1]


def test_references_of_another_question_do_not_serve_a_call(llm, index, seen):
    nodes = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
    ReferencePostprocessor().postprocess_nodes(nodes, query_str=QUESTION)
    llm.complete("Something else.")
    llm.complete(f"Read this: {TEXTS[1]} And answer.")
    llm.complete(f"Read this part: {TEXTS[0][:70]}")
    ReferencePostprocessor().postprocess_nodes([], query_str="?")
    llm.complete(TEXTS[0])
    assert [sorted(one) for one in seen] == [[], sorted(TEXTS), sorted(TEXTS), []]


def test_figures_and_copied_spans_of_an_engines_answer(index):
    llm = LLMA(model="s", engine=scripted_engine(f"It says: {TEXTS[0]}"))
    with callbacks(figures := FiguresHandler()):
        for way in ("synthesizer", "postprocessor"):
            response = query_engine(index, llm, way, False, RetrieverQueryEngine).query(QUESTION)
            (span,) = copied_from_sources(response)
            node = response.source_nodes[span.reference_index]
            assert node.get_content() == TEXTS[0]
            assert str(response)[span.start : span.end] == TEXTS[0]
            raw = figures.calls[-1]
            assert raw["copied_spans"][0]["end"] == span.end
            assert raw["forward_passes"] < raw["usage"]["completion_tokens"]
        talked = chat_engine(index, llm, "postprocessor", ContextChatEngine).chat(QUESTION)
        assert copied_from_sources(talked)
        assert len(figures.calls) == 3
        MockLLM(callback_manager=CallbackManager([figures])).complete("x")
        assert len(figures.calls) == 3


# -- function calling -----------------------------------------------------------------------------------


def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"rain in {city}"


TOOL = FunctionTool.from_defaults(weather)
CALLS = {
    "qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    "llama3_1": '{"name": "weather", "parameters": {"city": "Rome"}}',
}


@pytest.fixture(params=["qwen3", "llama3_1"])
def family(request):
    return request.param


def llm_that_says(family, reply):
    engine = scripted_engine(reply, real_template(family))
    return LLMA(model="scripted", engine=engine, max_tokens=200), engine


async def test_calls_of_tools_are_found_on_every_way(family):
    llm, engine = llm_that_says(family, CALLS[family])
    assert llm.metadata.is_function_calling_model
    responses = [
        llm.chat_with_tools([TOOL], QUESTION),
        await llm.achat_with_tools([TOOL], ChatMessage(content=QUESTION)),
        list(llm.stream_chat_with_tools([TOOL], QUESTION))[-1],
        (await collected(await llm.astream_chat_with_tools([TOOL], QUESTION)))[-1],
    ]
    for response in responses:
        (selection,) = llm.get_tool_calls_from_response(response)
        assert (selection.tool_name, selection.tool_kwargs) == ("weather", {"city": "Rome"})
        assert response.raw["finish_reason"] == "tool_calls"
    assert "Return the weather in a city." in engine.runner.prompts[-1]
    assert str(llm.predict_and_call([TOOL], QUESTION)) == "rain in Rome"


def test_no_call_is_an_error_where_one_is_wanted(family):
    llm, _ = llm_that_says(family, "It is nine.")
    response = llm.chat_with_tools([TOOL], QUESTION)
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"the answer calls no tool: 'It is nine\."):
        llm.get_tool_calls_from_response(response)


def test_a_call_that_is_required_begins_the_answer(family):
    ending = {"qwen3": "\n</tool_call>", "llama3_1": ""}[family]
    llm, engine = llm_that_says(family, '{"city": "Bern"}}' + ending)
    response = llm.chat_with_tools([TOOL], QUESTION, tool_required=True)
    assert llm.get_tool_calls_from_response(response)[0].tool_kwargs == {"city": "Bern"}
    assert '"name": "weather", "' in engine.runner.prompts[-1][-60:]


def test_one_of_several_calls_is_kept_unless_all_are_wanted():
    llm, _ = llm_that_says("qwen3", CALLS["qwen3"] * 2)
    for parallel, number in ((False, 1), (True, 2)):
        response = llm.chat_with_tools([TOOL], QUESTION, allow_parallel_tool_calls=parallel)
        assert len(llm.get_tool_calls_from_response(response)) == number
        streamed = list(llm.stream_chat_with_tools([TOOL], QUESTION, allow_parallel_tool_calls=parallel))
        assert len(llm.get_tool_calls_from_response(streamed[-1])) == number


def test_a_call_that_was_cut_off_is_not_made():
    llm, engine = llm_that_says("qwen3", '<tool_call>\n{"name": "weather", "arguments": {"city": "Ro')
    response = llm.chat_with_tools([TOOL], QUESTION)
    with pytest.raises(ValueError, match="the model's call of 'weather' is not valid"):
        llm.get_tool_calls_from_response(response)
    llm.chat_with_tools([TOOL], chat_history=[response.message], user_msg="Again?")
    assert '"arguments": {"invalid"' in engine.runner.prompts[-1]


def test_calls_and_results_of_the_history_are_rendered(family):
    llm, engine = llm_that_says(family, "It rains.")
    call = ToolCallBlock(tool_call_id="1", tool_name="weather", tool_kwargs={"city": "Rome"})
    history = [
        ChatMessage(content="Weather?"),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", content="rain in Rome", additional_kwargs={"tool_call_id": "1"}),
    ]
    assert llm.chat_with_tools([TOOL], chat_history=history).message.content == "It rains."
    prompt = engine.runner.prompts[-1]
    assert prompt.index('"name": "weather"') < prompt.index("rain in Rome")


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def test_structured_output_is_an_object(family):
    ending = {"qwen3": "\n</tool_call>", "llama3_1": ""}[family]
    llm, _ = llm_that_says(family, '{"name": "Ann", "age": 7}}' + ending)
    found = llm.structured_predict(Person, PromptTemplate("Who is {who}?"), who="Ann")
    assert found == Person(name="Ann", age=7)
    assert llm.as_structured_llm(Person).complete("Who?").raw == Person(name="Ann", age=7)


@pytest.mark.filterwarnings(
    "ignore::pydantic.PydanticDeprecationWarning"
)  # agents read old fields of pydantic
async def test_an_agent_calls_a_tool_and_answers(family):
    def reply(prompt):
        return "It rains in Rome." if "rain in Rome" in prompt else CALLS[family]

    llm, _ = llm_that_says(family, reply)
    agent = FunctionAgent(tools=[weather], llm=llm)
    assert str(await agent.run("Weather?", memory=memory())) == "It rains in Rome."


def test_reasoning_is_kept_apart():
    llm, engine = llm_that_says("qwen3", "<think>\nHm.\n</think>\n\nNine.")
    chats = list(llm.stream_chat(MESSAGES))
    for message in (llm.chat(MESSAGES).message, chats[-1].message):
        assert message.content == "Nine."
        assert [block.content for block in message.blocks if isinstance(block, ThinkingBlock)] == ["Hm."]
    assert "".join(one.additional_kwargs.get("thinking_delta", "") for one in chats) == "Hm."
    completion = llm.complete(QUESTION)
    assert (completion.text, completion.additional_kwargs) == ("Nine.", {"reasoning_content": "Hm."})
    llm.chat(MESSAGES, chat_template_kwargs={"enable_thinking": False})
    assert "<think>\n\n</think>" in engine.runner.prompts[-1]


def test_the_tokenizer_serves_llamaindexs_budgets(llm):
    before = Settings._tokenizer
    try:
        Settings.tokenizer = llm.tokenizer_fn
        assert len(TokenCountingHandler().tokenizer(TEXT)) == len(llm.tokenizer_fn(TEXT))
    finally:
        Settings._tokenizer = before


def test_documents_of_llamaindex_are_references(llm, seen):
    llm.with_references([Document(text=TEXTS[0])]).complete("x")
    assert seen == [[TEXTS[0]]]
