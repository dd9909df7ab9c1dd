"""The adapters' classes over a server: `llma-rag serve` over real HTTP, and servers that only speak OpenAI's API."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool

from llma_rag.errors import ContextLengthError, RequestTimeoutError, ServerError
from llma_rag.langchain import LLMA, ChatLLMA
from llma_rag.llamaindex import LLMA as IndexLLMA  # noqa: N811
from llma_rag.remote import RemoteEngine
from llma_rag.vllm import REFERENCES
from tests.scripted_engine import real_template, scripted_engine
from tests.serving import PIER, listening, serving

ANSWER = f"It says: {PIER}"
CALL = '<tool_call>\n{"name": "find", "arguments": {"what": "piers"}}\n</tool_call>'
DOCUMENTS = [Document(page_content=PIER, metadata={"source": "pier.txt"})]
QUESTION = "When is it closed?"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(scripted_engine(ANSWER), tmp_path_factory.mktemp("served"), api_key="secret") as one:
        one.options = {"base_url": f"{one.url}/v1", "api_key": "secret", "model": "scripted"}
        yield one


def test_langchains_chat_model_is_the_same_over_a_server(served):
    here = ChatLLMA(model="scripted", engine=served.engine).bind(references=DOCUMENTS)
    there = ChatLLMA(**served.options).bind(references=DOCUMENTS)
    local, remote = here.invoke(QUESTION), there.invoke(QUESTION)
    assert remote.content == local.content == ANSWER
    assert remote.response_metadata["copied_spans"] == local.response_metadata["copied_spans"]
    assert remote.response_metadata["forward_passes"] == local.response_metadata["forward_passes"]
    assert remote.usage_metadata["output_tokens"] == local.usage_metadata["output_tokens"]
    pieces = list(there.stream(QUESTION))
    assert len(pieces) > 2
    assert "".join(piece.content for piece in pieces) == ANSWER


async def test_it_is_the_same_in_an_event_loop(served):
    there = ChatLLMA(**served.options)
    answers = await asyncio.gather(*(there.ainvoke(QUESTION) for _ in range(4)))
    assert [answer.content for answer in answers] == [ANSWER] * 4
    assert "".join([piece.content async for piece in there.astream(QUESTION)]) == ANSWER


async def test_langchains_completion_model_is_the_same_over_a_server(served):
    there = LLMA(**served.options, references=[PIER])
    assert there.invoke(QUESTION) == ANSWER
    assert "".join(there.stream(QUESTION)) == ANSWER
    assert [one[0].text for one in (await there.agenerate([QUESTION] * 3)).generations] == [ANSWER] * 3
    info = there.generate([QUESTION]).generations[0][0].generation_info
    assert info["copied_spans"][0]["start"] == ANSWER.index(PIER)
    assert info["usage_metadata"]["output_tokens"] > 0


async def test_llamaindexs_model_is_the_same_over_a_server(served):
    there = IndexLLMA(**served.options).with_references([PIER])
    assert there.metadata.context_window == served.engine.context_length
    assert there.complete(QUESTION).text == ANSWER
    assert there.complete(QUESTION, formatted=True).text == ANSWER
    answer = there.chat([ChatMessage(QUESTION)])
    assert answer.message.content == ANSWER
    assert answer.raw["copied_spans"]
    assert (await there.achat([ChatMessage(QUESTION)])).message.content == ANSWER
    assert list(there.stream_complete(QUESTION))[-1].text == ANSWER
    assert there.tokenizer_fn(PIER) == served.engine.text_ids(PIER)


def test_references_save_the_server_passes(served):
    there = ChatLLMA(**served.options)
    plain = there.invoke(QUESTION, draft=False).response_metadata
    drafted = there.invoke(QUESTION, references=[ANSWER]).response_metadata
    assert drafted["forward_passes"] < plain["forward_passes"] / 2


def test_tokens_are_counted_by_the_server(served):
    there, here = ChatLLMA(**served.options), ChatLLMA(model="scripted", engine=served.engine)
    messages = [HumanMessage(QUESTION)]
    assert there.get_num_tokens_from_messages(messages) == here.get_num_tokens_from_messages(messages)
    assert there.get_num_tokens(PIER) == here.get_num_tokens(PIER)


def test_tools_are_left_to_the_server(tmp_path):
    def find(what: str) -> str:
        """Find something."""
        return what

    with serving(scripted_engine(CALL, real_template("qwen2_5")), tmp_path) as served:
        options = {"base_url": f"{served.url}/v1", "model": "scripted"}
        answer = ChatLLMA(**options).bind_tools([find]).invoke(QUESTION)
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == ("find", {"what": "piers"})
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        there = IndexLLMA(**options)
        response = there.chat_with_tools([FunctionTool.from_defaults(find)], user_msg=QUESTION)
        (selected,) = there.get_tool_calls_from_response(response)
        assert selected.tool_kwargs == {"what": "piers"}


def test_what_the_server_refuses_is_told(served):
    with pytest.raises(ServerError, match=r"status 401: .*; check api_key"):
        ChatLLMA(**{**served.options, "api_key": "wrong"}).invoke(QUESTION)
    with pytest.raises(ContextLengthError):
        ChatLLMA(**served.options).invoke("why " * 9000)
    with pytest.raises(ServerError, match=r"status 404: .*; check model, and base_url"):
        ChatLLMA(**{**served.options, "base_url": served.url}).invoke(QUESTION)
    with pytest.raises(ServerError, match="there is no model 'other'"):
        ChatLLMA(**{**served.options, "model": "other"}).invoke(QUESTION)
    with pytest.raises(ServerError, match=r"connection to http://127\.0\.0\.1:9/v1 failed"):
        ChatLLMA(base_url="http://127.0.0.1:9/v1", model="m", max_retries=0).invoke(QUESTION)
    with pytest.raises(ValueError, match="width and base_url exclude each other"):
        ChatLLMA(**served.options, width=8)
    with pytest.raises(TypeError, match="unknown argument"):
        ChatLLMA(**served.options).invoke(QUESTION, top_p=0.5)
    served.engine.runner.step_s = 0.2
    try:
        begun = time.monotonic()
        with pytest.raises(RequestTimeoutError):
            ChatLLMA(**served.options, timeout=0.3).invoke(QUESTION, draft=False)
        assert time.monotonic() - begun < 2
    finally:
        served.engine.runner.step_s = 0


# -- servers that are not ours ------------------------------------------------------------------------


class Plain:
    """An OpenAI-compatible server that records what it is sent, and is busy at first."""

    def __init__(self, owner, busy=0):
        self.bodies, self.tokenised = [], []
        self.listed = 0
        self.busy = busy
        self.tokenising_s = 0.0
        self.breaks_off = False
        self.app = FastAPI()
        self.app.state.stop_answers = lambda: None  # the tests' server asks for it
        self.owner = owner
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.post("/tokenize")(self.tokenize)

    def models(self):
        self.listed += 1
        one = {"id": "m", "object": "model", "created": 0, "owned_by": self.owner, "max_model_len": 512}
        return {"object": "list", "data": [one]}

    async def tokenize(self, request: Request):
        body = await request.json()
        self.tokenised.append(body)
        await asyncio.sleep(self.tokenising_s)
        return {"tokens": [ord(letter) for letter in body["prompt"]]}

    async def chat(self, request: Request):
        if self.busy:
            self.busy -= 1
            return JSONResponse({"error": {"message": "busy"}}, 429, {"Retry-After": "0"})
        self.bodies.append(await request.json())
        chunk = (
            'data: {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": '
            '[{"index": 0, "delta": {"content": "%s"}, "finish_reason": null}]}\n\n'
        )
        last = (chunk % "").replace('"finish_reason": null', '"finish_reason": "stop"')
        parts = [chunk % "Yes, ", chunk % PIER, *([] if self.breaks_off else [last]), "data: [DONE]\n\n"]
        return StreamingResponse(iter(parts), media_type="text/event-stream")


def test_vllm_gets_references_as_ids_of_its_own_tokenizer():
    server = Plain("vllm")
    with listening(server.app) as (url, _):
        there = ChatLLMA(base_url=f"{url}/v1", model="m")
        for _ in range(2):
            answer = there.invoke(QUESTION, references=[PIER, "ab"])
        assert answer.response_metadata["copied_spans"]
        assert server.bodies[-1]["vllm_xargs"] == {REFERENCES: [*map(ord, PIER), -1, 97, 98]}
        assert server.bodies[-1]["temperature"] == 0
        assert len(server.tokenised) == 2  # known the second time
        there.invoke(QUESTION, draft=False)
        assert server.bodies[-1]["vllm_xargs"] == {"llma_rag_draft": 0}
        with pytest.raises(ValueError, match="no_repeat_ngram_size has no effect"):
            there.invoke(QUESTION, no_repeat_ngram_size=3)
        assert server.listed == 1


def test_what_comes_before_the_request_counts_for_its_timeout():
    server = Plain("vllm")
    server.tokenising_s = 0.5
    with listening(server.app) as (url, _):
        with pytest.raises(RequestTimeoutError, match=r"in 0\.3 s"):
            ChatLLMA(base_url=f"{url}/v1", model="m", timeout=0.3).invoke(QUESTION, references=[PIER])
        assert not server.bodies


def test_ids_are_kept_up_to_a_number(monkeypatch):
    monkeypatch.setattr("llma_rag.remote._MOST_KEPT_IDS", 10)
    server = Plain("vllm")
    with listening(server.app) as (url, _):
        engine = RemoteEngine(f"{url}/v1", "m")
        for text in ("sixsix", "seven77", "seven77", "sixsix", "more than ten", "sixsix"):
            assert engine.text_ids(text) == [*map(ord, text)]
        assert len(server.tokenised) == 5
        engine.close()


def test_a_server_that_does_not_list_the_model_is_asked_for_it_once():
    server = Plain("vllm")
    with listening(server.app) as (url, _):
        there = ChatLLMA(base_url=f"{url}/v1", model="alias")
        for _ in range(2):
            assert PIER in there.invoke(QUESTION, references=[PIER]).content
        assert server.listed == 1


def test_any_other_server_answers_and_busy_ones_are_asked_again():
    server = Plain("someone", busy=1)
    with listening(server.app) as (url, _):
        there = ChatLLMA(base_url=f"{url}/v1", model="m")
        answer = there.invoke(QUESTION, references=DOCUMENTS)
        assert answer.content == f"Yes, {PIER}"
        assert answer.response_metadata["copied_spans"][0]["metadata"] == {"source": "pier.txt"}
        assert "vllm_xargs" not in server.bodies[0]
        assert "references" not in server.bodies[0]
        with pytest.raises(ServerError, match="has no /tokenize"):
            there.get_num_tokens("words")
        server.breaks_off = True
        with pytest.raises(ServerError, match="broke the answer off"):
            there.invoke(QUESTION)
        server.busy = 3
        with pytest.raises(ServerError, match="status 429: busy"):
            ChatLLMA(base_url=f"{url}/v1", model="m", max_retries=1).invoke(QUESTION)


def test_a_server_that_tells_neither_models_nor_ids_answers():
    server = Plain("vllm")
    server.app.router.routes[:] = [route for route in server.app.routes if route.path != "/tokenize"]
    with listening(server.app) as (url, _):
        there = ChatLLMA(base_url=f"{url}/v1", model="m", max_tokens=None)
        assert PIER in there.invoke(QUESTION, references=[PIER]).content
        assert server.bodies[-1]["vllm_xargs"] == {}
        assert "max_tokens" not in server.bodies[-1]  # vLLM fills the context
    server.app.router.routes[:] = [route for route in server.app.routes if route.path != "/v1/models"]
    with listening(server.app) as (url, _):
        assert PIER in ChatLLMA(base_url=f"{url}/v1", model="m").invoke(QUESTION).content


def test_a_chatbot_over_the_servers_documents_tells_its_sources(served):
    there = ChatLLMA(**{**served.options, "model": "scripted+documents"})
    told = there.invoke("When is the northern pier closed?").response_metadata
    assert told["sources"][0]["text"] in PIER
    (span,) = told["spans"]
    assert span["number"] == told["sources"][0]["number"]


@pytest.mark.parametrize("key", ["secret\n", "two secrets", "secr\u00e9t", ""])
def test_a_key_that_no_header_can_hold_is_refused(key):
    with pytest.raises(ValueError, match="one word of ASCII") as told:
        ChatLLMA(model="m", base_url="http://127.0.0.1/v1", api_key=key)
    assert "secr" not in str(told.value)


def test_secrets_are_shown_nowhere(served):
    there = ChatLLMA(**served.options)
    assert "secret" not in f"{there!r} {there.model_dump()} {there._identifying_params}"
    with pytest.raises(ValueError, match="exclude each other") as told:
        ChatLLMA(**served.options, width=8)
    assert "secret" not in str(told.value)
    with pytest.raises(ValueError, match="without user and password") as told:
        ChatLLMA(model="m", base_url="http://someone:secret@127.0.0.1/v1")
    assert "secret" not in str(told.value)


def test_closing_a_stream_ends_the_request(served):
    served.engine.runner.step_s = 0.05
    try:
        engine = RemoteEngine(served.options["base_url"], "scripted", api_key="secret")
        pieces = engine.call([{"role": "user", "content": QUESTION}], {"draft": False}).pieces()
        next(pieces)
        steps = served.engine.runner.steps
        pieces.close()
        for _ in range(100):
            if not served.engine.unfinished_requests:
                break
            httpx.get(f"{served.url}/healthz")
        assert served.engine.unfinished_requests == 0
        assert served.engine.runner.steps - steps < 5
        engine.close()
    finally:
        served.engine.runner.step_s = 0
