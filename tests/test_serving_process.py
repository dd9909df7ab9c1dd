"""The command `llma-rag serve` as a process: the packaged demo, signals, kills, and load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time

import httpx
import openai
import psutil
import pytest
from langchain_openai import ChatOpenAI

from llma_rag.retrieval import DocumentStore, embedder_named, index_documents
from tests.serving import PIER, served_process, until
from tests.test_cli import run

SOAK_S = float(os.environ.get("LLMA_RAG_SOAK_S", "10"))  # 60 by hand
CLIENTS = 50
QUESTIONS = [
    f"Question {number}: what is said about the pier, the ferry and number {number}?" for number in range(20)
]


@pytest.fixture
def folder(tmp_path):
    """A store over two documents."""
    (tmp_path / "pier.txt").write_text(PIER)
    (tmp_path / "ferry.txt").write_text("The ferry leaves at nine, on Sundays at ten.")
    embedder = embedder_named("all-MiniLM-L6-v2")
    with DocumentStore.open(tmp_path / "store", embedder, write=True) as store:
        index_documents(store, [tmp_path / "pier.txt", tmp_path / "ferry.txt"])
    return tmp_path


def arguments(folder, model, *more):
    where = ["--store", folder / "store", "--conversations", folder / "conversations.db"]
    return [*where, "--model", model, "--min-similarity", "-1", *more]


# -- the command --------------------------------------------------------------------------------------


def test_what_is_wrong_with_the_arguments_is_told_before_anything_is_loaded(capsys, tmp_path):
    assert run(capsys, "serve")[0] == 2
    code, _, told = run(capsys, "serve", "--demo", "--store", tmp_path)
    assert (code, "either --store or --demo" in told) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, told = run(capsys, "serve", "--demo", "--port", taken.getsockname()[1])
    assert (code, "cannot listen at 127.0.0.1" in told) == (2, True)
    code, _, told = run(capsys, "serve", "--demo", "--host", "no.such.host.invalid")
    assert (code, "cannot listen at no.such.host.invalid" in told) == (2, True)


def test_a_key_that_is_empty_opens_nothing(capsys, monkeypatch):
    monkeypatch.setenv("LLMA_RAG_API_KEY", "")
    code, _, told = run(capsys, "serve", "--demo")
    assert (code, "API key must not be empty" in told) == (2, True)


@pytest.mark.model
def test_the_demo_serves_openais_and_langchains_clients():
    with served_process("--demo", "--api-key", "secret") as (process, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as stranger:
            with pytest.raises(openai.AuthenticationError):
                stranger.models.list()
        question = [{"role": "user", "content": "What does error code E4 on the Morvello B2 mean?"}]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret") as client:
            documents, plain = (model.id for model in client.models.list())
            answer = client.chat.completions.create(model=documents, messages=question, max_tokens=60)
            assert "the boiler is overheating" in answer.choices[0].message.content
            assert answer.llma_rag["figures"]["exact"] is True
            assert answer.llma_rag["spans"]
            chunks = list(
                client.chat.completions.create(
                    model=documents,
                    messages=question,
                    max_tokens=60,
                    stream=True,
                    stream_options={"include_usage": True},
                )
            )
            text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
            assert text == answer.choices[0].message.content
            assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
            stopped = client.chat.completions.create(model=documents, messages=question, stop=["boiler"])
            assert "boiler" not in stopped.choices[0].message.content
            with pytest.raises(openai.BadRequestError, match=r"has \d+ tokens, but the context holds \d+"):
                client.chat.completions.create(
                    model=plain, messages=[{"role": "user", "content": "x " * 9000}]
                )
        llm = ChatOpenAI(model=documents, base_url=f"{url}/v1", api_key="secret", max_completion_tokens=60)
        assert llm.invoke(question).content == text
        assert "".join(part.content for part in llm.stream(question)) == text
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


# -- signals and kills --------------------------------------------------------------------------------


def _streaming(url, **more):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "When?"}], "stream": True, **more}
    return httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60)


def _models(url):
    return [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_finishes_what_it_is_answering(folder, tiny_folder, number):
    with served_process(*arguments(folder, tiny_folder)) as (process, url):
        documents, _ = _models(url)
        with _streaming(url, model=documents, max_tokens=300) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(number)
            last = [line for line in lines if line][-1]
        assert last == "data: [DONE]"
        assert process.wait(30) == 0
    assert not any("Traceback" in line for line in process.told), "".join(process.told)


@pytest.mark.soak
def test_a_killed_server_has_lost_nothing_that_was_finished(folder, tiny_folder):
    """Killed in an answer, in the middle of an upload's bytes, and while a document is indexed."""
    long = "\n\n".join(
        f"Paragraph {number}: the harbour, the pier and the boats. " * 12 for number in range(400)
    )
    with served_process(*arguments(folder, tiny_folder)) as (process, url):
        documents, _ = _models(url)
        talk = httpx.post(f"{url}/v1/conversations", json={}).json()["id"]
        body = {"model": documents, "messages": [{"role": "user", "content": "When?"}], "conversation": talk}
        assert httpx.post(
            f"{url}/v1/chat/completions", json={**body, "max_tokens": 20}, timeout=60
        ).is_success
        with _streaming(url, **{**body, "max_tokens": 400}) as response:
            next(response.iter_lines())
            process.kill()
            process.wait()
    with served_process(*arguments(folder, tiny_folder)) as (process, url):
        assert len(httpx.get(f"{url}/v1/conversations/{talk}").json()["turns"]) == 1
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as upload:
            form = (
                b'--x\r\nContent-Disposition: form-data; name="file"; filename="half.txt"\r\n\r\nhalf of it'
            )
            head = f"POST /v1/documents HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5000000\r\n"
            upload.sendall(
                f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode() + form * 1000
            )
            time.sleep(0.3)
            process.kill()
            process.wait()
    with served_process(*arguments(folder, tiny_folder)) as (process, url):
        listed = httpx.get(f"{url}/v1/documents").json()["data"]
        assert sorted(one["name"] for one in listed) == ["ferry.txt", "pier.txt"]
        assert (
            httpx.post(f"{url}/v1/documents", files={"file": ("long.txt", long.encode())}).status_code == 202
        )
        until(
            lambda: (httpx.get(f"{url}/v1/documents").json()["indexing"] or {}).get("embedded_passages"), 60
        )
        process.kill()
        process.wait()
    with DocumentStore.open(folder / "store", embedder_named("all-MiniLM-L6-v2")) as store:  # every checksum
        assert len(store.sources) in (2, 3)
    with served_process(*arguments(folder, tiny_folder)) as (process, url):

        def states():
            return {one["name"]: one["state"] for one in httpx.get(f"{url}/v1/documents").json()["data"]}

        until(lambda: states().get("long.txt") == "indexed", 180)
        assert len(httpx.get(f"{url}/v1/conversations/{talk}").json()["turns"]) == 1


# -- load ---------------------------------------------------------------------------------------------


async def _ask(client, question):
    body = {
        "model": client.model,
        "messages": [{"role": "user", "content": question}],
        "references": [PIER, question],
        "max_tokens": 16,
        "return_token_ids": True,
    }
    response = await client.post("/v1/chat/completions", json=body)
    return response.json()["llma_rag"]["token_ids"] if response.status_code == 200 else response.status_code


async def _load(url, model, expected, seconds):
    """Ask from all clients at once; return how many answers and refusals there were."""
    limits = httpx.Limits(max_connections=None)
    outcomes = {"answered": 0, "refused": 0}
    deadline = time.monotonic() + seconds

    async def one_client(client, number):
        turn = number
        while time.monotonic() < deadline:
            question = QUESTIONS[turn % len(QUESTIONS)]
            ids = await asyncio.wait_for(_ask(client, question), 60)
            turn += 1
            if ids == 429:
                outcomes["refused"] += 1
                await asyncio.sleep(0.5)
            else:
                assert ids == expected[question]
                outcomes["answered"] += 1

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        client.model = model
        await asyncio.gather(*(one_client(client, number) for number in range(CLIENTS)))
    return outcomes


async def _alone(url, model):
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        client.model = model
        return {question: await _ask(client, question) for question in QUESTIONS}


class _Watch:
    """Asks for the health all the while and keeps the longest time it took."""

    def __init__(self, url):
        self.longest_s = 0.0
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with httpx.Client() as client:
            while not self._ended.wait(0.1):
                started = time.perf_counter()
                assert client.get(f"{self._url}/healthz", timeout=30).status_code == 200
                self.longest_s = max(self.longest_s, time.perf_counter() - started)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()


@pytest.mark.soak
def test_fifty_clients_get_what_one_gets_or_are_told_to_wait(folder, tiny_folder, capsys):
    with served_process(*arguments(folder, tiny_folder, "--queue", "40")) as (process, url):
        _, model = _models(url)
        expected = asyncio.run(_alone(url, model))
        asyncio.run(_load(url, model, expected, SOAK_S / 2))  # the warm-up
        memory = psutil.Process(process.pid)
        before = memory.memory_info().rss
        with _Watch(url) as watch:
            outcomes = asyncio.run(_load(url, model, expected, SOAK_S))
        after = memory.memory_info().rss
        assert outcomes["answered"] > CLIENTS
        assert outcomes["refused"] > 0
        assert watch.longest_s < 1
        assert after <= before * 1.05
        assert not any("Traceback" in line for line in process.told), "".join(process.told)
        with capsys.disabled():
            print(
                f" {outcomes}, health {watch.longest_s:.2f} s, {before / 2**20:.0f} to {after / 2**20:.0f} MiB ",
                end="",
            )


@pytest.mark.soak
def test_the_model_is_free_within_a_step_once_twenty_clients_have_gone(folder, tiny_folder):
    with served_process(*arguments(folder, tiny_folder)) as (_, url):
        _, model = _models(url)

        def unfinished():
            text = httpx.get(f"{url}/metrics").text
            return next(
                float(line.split()[1]) for line in text.splitlines() if line.startswith("llma_rag_unfin")
            )

        body = json.dumps(
            {"model": model, "prompt": "go on", "max_tokens": 900, "stream": True, "draft": False}
        )
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        gone = []
        for _ in range(20):
            one = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
            one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            gone.append(one)
        assert gone[0].recv(100)  # the first one's answer is on its way
        until(lambda: unfinished() >= 15, 10)
        for one in gone:
            one.close()
        until(lambda: unfinished() == 0, 1)
