"""The server over real HTTP: OpenAI's and LangChain's clients, references, documents, conversations, limits."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI

from llma_rag.conversation import Chatbot, ChatSettings
from llma_rag.conversation.chatbot import REFUSAL
from llma_rag.serving import ServerSettings, streaming
from llma_rag.serving import server as server_module
from tests.scripted_engine import real_template, scripted_engine
from tests.serving import PIER, serving, until

ANSWER = f"It says: {PIER}"
DOCUMENTS = "scripted+documents"
TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(scripted_engine(ANSWER), tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def asked(content="When is it closed?"):
    return [{"role": "user", "content": content}]


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# -- clients ------------------------------------------------------------------------------------------


def test_openais_client_chats(client):
    answer = client.chat.completions.create(model="scripted", messages=asked())
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.llma_rag["figures"]["exact"] is True
    assert {model.id for model in client.models.list()} == {"scripted", DOCUMENTS}
    assert client.models.retrieve(DOCUMENTS).id == DOCUMENTS


def test_openais_client_streams_with_usage_at_the_end(client):
    chunks = list(
        client.chat.completions.create(
            model="scripted", messages=asked(), stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(one.usage is None for one in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert len({one.id for one in chunks}) == 1


def test_stop_strings_and_limits_end_an_answer(client):
    stopped = client.chat.completions.create(model="scripted", messages=asked(), stop=[" pier"])
    assert stopped.choices[0].message.content == "It says: The northern"
    assert stopped.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(model="scripted", messages=asked(), max_completion_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3


def test_errors_reach_openais_client_with_their_status(client):
    with pytest.raises(openai.NotFoundError, match="there are scripted"):
        client.chat.completions.create(model="gpt-5", messages=asked())
    with pytest.raises(
        openai.BadRequestError, match=r"prompt has \d+ tokens, but the context holds 8192"
    ) as told:
        client.chat.completions.create(model="scripted", messages=asked("word " * 9000), stream=True)
    assert told.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="max_tokens is 9000, but the context holds 8192"):
        client.chat.completions.create(model="scripted", messages=asked(), max_tokens=9000)
    with pytest.raises(openai.BadRequestError, match=r"body\.messages\.0\.role"):
        client.chat.completions.create(model="scripted", messages=[{"role": "judge", "content": "x"}])


def test_prompts_are_completed_one_or_several(client):
    one = client.completions.create(model="scripted", prompt="It is", max_tokens=4)
    assert ANSWER.startswith(one.choices[0].text)
    several = client.completions.create(model="scripted", prompt=["a", "b"])
    assert [choice.text for choice in several.choices] == [ANSWER, ANSWER]
    assert [choice.index for choice in several.choices] == [0, 1]
    streamed = client.completions.create(model="scripted", prompt=["a", "b"], stream=True)
    texts = ["", ""]
    for part in streamed:
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == [ANSWER, ANSWER]


def test_langchains_client_talks_to_the_server(served):
    llm = ChatOpenAI(model="scripted", base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    answer = llm.invoke("When is it closed?")
    assert answer.content == ANSWER
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(part.content for part in llm.stream("When is it closed?")) == ANSWER
    assert llm.invoke("When?", stop=[" pier"]).content == "It says: The northern"
    with pytest.raises(openai.BadRequestError, match="the context holds 8192"):
        llm.invoke("word " * 9000)


def test_tools_reach_the_model_and_its_calls_the_client(tmp_path):
    call = '<tool_call>\n{"name": "find", "arguments": {"what": "piers"}}\n</tool_call>'
    with (
        serving(scripted_engine(call, real_template("qwen3")), tmp_path) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client,
    ):
        answer = client.chat.completions.create(model="scripted", messages=asked(), tools=[TOOL])
        (found,) = answer.choices[0].message.tool_calls
        assert (found.function.name, json.loads(found.function.arguments)) == ("find", {"what": "piers"})
        assert answer.choices[0].finish_reason == "tool_calls"
        chunks = list(
            client.chat.completions.create(model="scripted", messages=asked(), tools=[TOOL], stream=True)
        )
        streamed = [one.choices[0].delta.tool_calls for one in chunks if one.choices[0].delta.tool_calls]
        assert streamed[0][0].function.name == "find"
        again = [
            *asked(),
            answer.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": found.id, "content": "None."},
        ]
        assert client.chat.completions.create(model="scripted", messages=again, tools=[TOOL]).choices
        assert "None." in served.engine.runner.prompts[-1]
        with pytest.raises(openai.BadRequestError, match="tool_choice must be"):
            other = {"type": "function", "function": {"name": "lose"}}
            client.chat.completions.create(
                model="scripted", messages=asked(), tools=[TOOL], tool_choice=other
            )


@pytest.mark.parametrize(
    ("written", "arguments", "reason"),
    [
        ('{"name": "find", "arguments": [1]}\n</tool_call>', "[1]", "tool_calls"),
        ('{"name": "find", "arguments": {"what": "pi', '{"what": "pi', "length"),
    ],
)
def test_a_call_that_is_not_well_written_can_be_sent_back(tmp_path, written, arguments, reason):
    engine = scripted_engine(f"<tool_call>\n{written}", real_template("qwen3"))
    with serving(engine, tmp_path) as served:
        tokens = {"max_tokens": len(engine.tokenizer(f"<tool_call>\n{written}").input_ids)}
        choice = served.chat("When?", tools=[TOOL], **(tokens if reason == "length" else {})).json()[
            "choices"
        ][0]
        assert choice["finish_reason"] == reason
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "find", "arguments": arguments}
        call["index"] = 0  # as clients have it that put a stream together
        again = [*asked(), choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "No."}]
        assert served.chat(again, tools=[TOOL]).status_code == 200
        assert arguments in engine.runner.prompts[-1]


@pytest.mark.parametrize(
    "choice", ["find", {"function": "find"}, {"function": None}, [], {"type": "allowed_tools"}, 3]
)
def test_a_choice_of_tool_that_is_none_is_the_clients_mistake(served, choice):
    assert served.chat("When?", tool_choice=choice).status_code == 400


def test_nulls_are_as_if_nothing_was_said(served):
    names = (
        "stream",
        "stream_options",
        "temperature",
        "stop",
        "tools",
        "tool_choice",
        "max_tokens",
        "draft",
        "n",
    )
    answer = served.chat("When?", **dict.fromkeys(names)).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["llma_rag"]["ignored"] == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"model": }', "no JSON: Expecting value at character 10"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "Input should be 'text'"),
        ({"references": [{"txt": "x"}], "messages": asked()}, "ReferenceField.t"),
    ],
)
def test_what_is_wrong_with_a_body_is_told(served, body, told):
    content = body if isinstance(body, bytes) else json.dumps({"model": "scripted", **body})
    response = served.http.post(
        "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, told in response.json()["error"]["message"]) == (400, True), response.text
    bare = served.http.post("/v1/chat/completions", content=content)
    assert "header `Content-Type: application/json`" in bare.json()["error"]["message"]


def test_a_wrong_path_is_told_where_the_api_is(served):
    response = served.http.post("/chat/completions", json={})
    assert (response.status_code, "below /v1" in response.json()["error"]["message"]) == (404, True)


def test_the_application_answers_without_a_server(served):
    transport = httpx.ASGITransport(served.app)

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"model": "scripted", "messages": asked()}
            return await client.post("/v1/chat/completions", json=body)

    for _ in range(2):  # in two event loops
        assert asyncio.run(ask()).json()["choices"][0]["message"]["content"] == ANSWER


# -- what OpenAI's API does not have ------------------------------------------------------------------


def test_references_speed_an_answer_up_and_the_copied_words_are_named(served):
    references = [{"text": PIER, "metadata": {"file": "pier.txt"}}, "another text"]
    drafted = served.chat("When?", references=references, return_token_ids=True).json()
    plain = served.chat("When?", references=references, return_token_ids=True, draft=False).json()
    assert drafted["llma_rag"]["token_ids"] == plain["llma_rag"]["token_ids"]
    passes = [one["llma_rag"]["figures"]["forward_passes"] for one in (drafted, plain)]
    assert passes[0] < passes[1]
    assert drafted["llma_rag"]["sources"][0] == {"number": 1, "metadata": {"file": "pier.txt"}}
    (span,) = drafted["llma_rag"]["spans"]
    text = drafted["choices"][0]["message"]["content"]
    assert text[span["start"] : span["end"]] == PIER[span["source_start"] : span["source_end"]] == PIER
    assert span["number"] == 1


def test_what_has_no_effect_is_named_and_logged_once(served, caplog):
    with caplog.at_level(logging.WARNING, logger="llma_rag.serving"):
        for _ in range(2):
            answer = served.chat(
                "When?", temperature=0.7, top_k=5, unheard_of=[1], n=1, seed=3, top_p=1
            ).json()
    assert answer["llma_rag"]["ignored"] == ["temperature", "top_k", "unheard_of"]
    assert [record.args for record in caplog.records] == [("temperature",), ("top_k",), ("unheard_of",)]
    assert served.chat("When?", temperature=0, user="me").json()["llma_rag"]["ignored"] == []
    single = served.chat("When?", parallel_tool_calls=False).json()
    assert single["llma_rag"]["ignored"] == ["parallel_tool_calls"]
    streamed = events(served.chat("When?", temperature=1, stream=True))
    assert streamed[-1]["llma_rag"]["ignored"] == ["temperature"]


def test_a_strict_server_refuses_what_has_no_effect(tmp_path):
    with serving(scripted_engine(ANSWER), tmp_path, strict=True) as served:
        refused = served.chat("When?", temperature=0.7)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "temperature"
        assert "--strict" in refused.json()["error"]["message"]
        assert served.chat("When?", temperature=0, seed=1).status_code == 200
        assert served.chat("When?", DOCUMENTS, tools=[TOOL]).status_code == 400


# -- documents ----------------------------------------------------------------------------------------


def test_the_chatbot_answers_from_the_documents(served):
    answer = served.chat("When is the northern pier closed?", DOCUMENTS).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER
    told = answer["llma_rag"]
    assert told["basis"] == "documents"
    assert PIER in [source["text"] for source in told["sources"]]
    (span,) = told["spans"]
    named = next(source for source in told["sources"] if source["number"] == span["number"])
    assert named["text"] == PIER
    listed = served.http.get("/v1/documents").json()["data"]
    assert named["document"] in [document["id"] for document in listed]
    assert told["figures"]["forward_passes"] < answer["usage"]["completion_tokens"]


def test_a_stream_begins_with_the_sources(served):
    streamed = events(served.chat("When is the northern pier closed?", DOCUMENTS, stream=True))
    assert PIER in [source["text"] for source in streamed[0]["llma_rag"]["sources"]]
    assert streamed[-1]["llma_rag"]["spans"]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in streamed) == ANSWER


def test_what_the_documents_do_not_answer_is_refused_without_the_model(tmp_path):
    with serving(scripted_engine("I think so."), tmp_path, chat=ChatSettings(min_similarity=1)) as served:
        for stream in (False, True):
            refused = served.chat("Who won?", DOCUMENTS, stream=stream)
            assert REFUSAL in refused.text
        assert served.engine.runner.prompts == []
        free = served.chat("Who won?", DOCUMENTS, mode="chat").json()
        assert free["choices"][0]["message"]["content"] == "(Not from the documents.) I think so."
        assert free["llma_rag"]["basis"] == "model"


def test_messages_are_the_history_and_instructions_are_passed_on(served):
    messages = [
        {"role": "system", "content": "Answer like a pirate."},
        {"role": "assistant", "content": "Welcome!"},
        {"role": "user", "content": "When is the northern pier closed?"},
        {"role": "assistant", "content": "In winter."},
        {"role": "user", "content": [{"type": "text", "text": "And why?"}]},
    ]
    answer = served.chat(messages, DOCUMENTS).json()
    assert answer["llma_rag"]["query"] == "When is the northern pier closed? And why?"
    prompt = served.engine.runner.prompts[-1]
    assert "Answer like a pirate." in prompt
    assert "In winter." in prompt
    refused = served.chat(messages[:4], DOCUMENTS)
    assert (refused.status_code, "last message" in refused.text) == (400, True)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"references": ["x"]}, "are the documents"),
        ({"conversation": "none"}, "no conversation 'none'"),
    ],
)
def test_what_the_chatbot_cannot_take_is_told(served, more, told):
    assert told in served.chat("When?", DOCUMENTS, **more).json()["error"]["message"]


def test_a_conversation_is_kept_turn_by_turn(served):
    assert served.http.post("/v1/conversations").status_code == 201
    begun = served.http.post("/v1/conversations", json={"title": "Piers"}).json()
    for stream in (False, True):
        response = served.chat("When is the pier closed?", DOCUMENTS, conversation=begun["id"], stream=stream)
        assert response.status_code == 200
    kept = served.http.get(f"/v1/conversations/{begun['id']}").json()
    assert [turn["answer"] for turn in kept["turns"]] == [ANSWER, ANSWER]
    assert kept["turns"][0]["sources"]
    assert "See also" in served.engine.runner.prompts[-1]  # the passages are known from the first turn
    listed = served.http.get("/v1/conversations").json()["data"]
    assert listed[0]["id"] == begun["id"]
    assert (listed[0]["title"], listed[0]["turns"]) == ("Piers", 2)
    renamed = served.http.patch(f"/v1/conversations/{begun['id']}", json={"title": "The pier"})
    assert renamed.json()["title"] == "The pier"
    assert served.http.get("/v1/conversations").json()["data"][0]["title"] == "The pier"
    assert served.http.patch("/v1/conversations/none", json={"title": "x"}).status_code == 404
    twice = [*asked(), {"role": "assistant", "content": "No."}, *asked()]
    assert "new question only" in served.chat(twice, DOCUMENTS, conversation=begun["id"]).text
    assert "goes with the model" in served.chat("When?", conversation=begun["id"]).text
    assert served.http.delete(f"/v1/conversations/{begun['id']}").json()["deleted"] is True
    assert served.http.get(f"/v1/conversations/{begun['id']}").status_code == 404
    assert served.http.delete(f"/v1/conversations/{begun['id']}").status_code == 404


def test_conversations_about_other_documents_are_not_shown(served):
    other = served.conversations.begin("secret", about="elsewhere")
    assert other.id not in served.http.get("/v1/conversations").text
    assert served.http.get(f"/v1/conversations/{other.id}").status_code == 404
    assert served.http.delete(f"/v1/conversations/{other.id}").status_code == 404
    assert served.conversations.get(other.id) is not None


def test_a_template_may_be_told_things_but_not_replaced(served):
    assert served.chat("When?", chat_template_kwargs={"enable_thinking": False}).status_code == 200
    for name in ("chat_template", "padding", "tokenize"):
        refused = served.chat("When?", chat_template_kwargs={name: "x"})
        assert (refused.status_code, f"may not set {name}" in refused.text) == (400, True)


def test_reasoning_is_apart_from_the_answer(tmp_path):
    engine = scripted_engine(f"<think>\nLet me see.\n</think>\n\n{PIER}", real_template("qwen3"))
    with serving(engine, tmp_path) as served:
        message = served.chat("When?").json()["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == (PIER, "Let me see.")
        begun = served.http.post("/v1/conversations", json={}).json()["id"]
        streamed = events(served.chat("When?", DOCUMENTS, conversation=begun, stream=True))
        deltas = [one["choices"][0]["delta"] for one in streamed]
        assert "".join(delta.get("content", "") for delta in deltas) == PIER
        assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == "Let me see."
        (turn,) = served.conversations.get(begun).turns
        assert turn.answer == PIER
        assert turn.spans[0]["start"] == 0


# -- load ---------------------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path):
    engine = scripted_engine("word " * 400)
    engine.runner.step_s = 0.05
    with serving(engine, tmp_path, queue=2) as one:
        yield one


def test_more_requests_than_the_queue_takes_are_told_to_come_back(slow):
    with slow.http.stream("POST", "/v1/completions", json=_long()) as first:
        pieces = first.iter_bytes()  # dropping it would close the connection
        next(pieces)
        second = threading.Thread(target=lambda: slow.http.post("/v1/completions", json=_long(2)))
        second.start()
        until(lambda: slow.metric("llma_rag_unfinished_requests") == 2)
        refused = slow.chat("When?")
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "2 requests in work" in refused.json()["error"]["message"]
        assert slow.http.get("/healthz").status_code == 200
    second.join()
    assert slow.chat("When?", max_tokens=1).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_the_model_stops_where_the_client_goes(slow, stream):
    body = {**_long(), "stream": stream}
    runner = slow.engine.runner
    runner.step_s = 0.2
    if stream:
        with slow.http.stream("POST", "/v1/completions", json=body) as response:
            pieces = response.iter_bytes()
            next(pieces)
    else:
        with pytest.raises(httpx.ReadTimeout):
            slow.http.post("/v1/completions", json=body, timeout=0.5)
    steps = runner.steps
    until(lambda: slow.metric("llma_rag_unfinished_requests") == 0, seconds=2)
    assert (
        runner.steps <= steps + 2
    )  # the one that ran, and one that began before the connection was seen closed
    assert slow.metric("llma_rag_forward_passes_total") == 0  # it was never complete
    assert slow.chat("When?", max_tokens=1).status_code == 200


def test_a_client_that_goes_while_its_question_is_looked_up_gives_its_place_back(slow, monkeypatch):
    may_go_on = threading.Event()
    prepare = Chatbot.prepare

    def waiting(self, *arguments):
        may_go_on.wait(30)
        return prepare(self, *arguments)

    monkeypatch.setattr(Chatbot, "prepare", waiting)
    begun = slow.http.post("/v1/conversations", json={}).json()["id"]
    for conversation in (begun, None):
        with pytest.raises(httpx.ReadTimeout):
            body = {"model": DOCUMENTS, "messages": asked(), "conversation": conversation}
            slow.http.post("/v1/chat/completions", json=body, timeout=0.3)
    until(
        lambda: slow.chat("When?", max_tokens=1).status_code == 429, seconds=2
    )  # the threads have them still
    may_go_on.set()
    until(lambda: slow.chat("When?", DOCUMENTS, conversation=begun, max_tokens=1).status_code == 200)
    assert slow.engine.unfinished_requests == 0


def test_a_stream_that_waits_long_hears_that_it_is_not_forgotten(slow, monkeypatch):
    monkeypatch.setattr(streaming, "_SILENCE_S", 0.1)
    with slow.http.stream("POST", "/v1/completions", json=_long()) as first:
        pieces = first.iter_bytes()
        next(pieces)
        with slow.http.stream("POST", "/v1/completions", json=_long(2)) as second:
            assert next(second.iter_text()) == ": the answer is still to come\n\n"


def test_a_conversation_has_one_answer_at_a_time(slow):
    begun = slow.http.post("/v1/conversations", json={}).json()["id"]
    body = {"model": DOCUMENTS, "messages": asked(), "conversation": begun, "stream": True}
    with slow.http.stream("POST", "/v1/chat/completions", json=body) as first:
        pieces = first.iter_bytes()  # dropping it would close the connection
        next(pieces)
        assert slow.chat("When?", DOCUMENTS, conversation=begun).status_code == 409
        assert slow.http.delete(f"/v1/conversations/{begun}").status_code == 409
    until(lambda: slow.metric("llma_rag_unfinished_requests") == 0)
    assert slow.chat("When?", DOCUMENTS, conversation=begun, max_tokens=1).status_code == 200
    assert len(slow.conversations.get(begun).turns) == 1  # the interrupted one is not kept


@pytest.mark.parametrize("stream", [True, False])
def test_a_stopped_server_ends_what_takes_too_long_with_a_word(tmp_path, caplog, monkeypatch, stream):
    monkeypatch.setattr(server_module, "_SHUTDOWN_S", 0.3)
    engine = scripted_engine("word " * 4000)
    engine.runner.step_s = 0.05
    with serving(engine, tmp_path) as served:
        stopping = threading.Thread(
            target=lambda: until(lambda: engine.unfinished_requests) and served.stop()
        )
        stopping.start()
        response = served.http.post("/v1/completions", json={**_long(4000), "stream": stream})
        stopping.join()
        assert response.status_code == (200 if stream else 503)
        assert "the server shuts down" in response.text.strip().split("\n\n")[-1]
    until(lambda: engine.unfinished_requests == 0, seconds=2)
    assert "Traceback" not in caplog.text


def _long(tokens=400):
    return {"model": "scripted", "prompt": "go on", "max_tokens": tokens, "stream": True, "draft": False}


def test_an_error_within_a_stream_is_its_last_event(served, monkeypatch):
    def failing(position, candidates, **_):
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(served.engine.runner, "verify", failing)
    response = served.chat("When?", stream=True)
    assert response.status_code == 200
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text
    whole = served.chat("When?")
    assert (whole.status_code, "secret" in whole.text) == (500, False)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="queue must be at least 1, got 0"):
        ServerSettings(queue=0)
    with pytest.raises(ValueError, match="an origin begins with http"):
        ServerSettings(origins=("example.com",))
    for key in ("", " ", "key "):
        with pytest.raises(ValueError, match="API key must not be empty"):
            ServerSettings(api_key=key)
