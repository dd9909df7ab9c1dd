"""vLLM's server with the proposer in it: LLMA_RAG_VLLM_PYTHON is its environment's, LLMA_RAG_VLLM_MODEL a model's folder.

examples/vllm/set_up.sh makes both.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import pytest
from llama_index.core.base.llms.types import ChatMessage

from llma_rag.cli.vllm_args import server_arguments
from llma_rag.langchain import LLMA, ChatLLMA
from llma_rag.llamaindex import LLMA as IndexLLMA  # noqa: N811
from llma_rag.vllm import REFERENCES

pytestmark = pytest.mark.vllm

TEXT = (
    "The northern pier is closed from November to March, because the storms of winter throw stones over its wall. "
    "In these months the ferry to the island leaves from the eastern harbour, at nine in the morning and at five."
)
QUESTION = f"Repeat this text word by word, and say nothing else: {TEXT}"


class VllmServer:
    """A server, and what it has told."""

    def __init__(self, process, url):
        self.process, self.url = process, url
        self.told = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.options = {"base_url": f"{url}/v1", "model": "m", "max_tokens": 60}

    def _read(self):
        self.told.extend(self.process.stdout)

    def passes(self):
        """How many forward passes have made tokens."""
        text = httpx.get(f"{self.url}/metrics").text
        made, accepted = (
            sum(float(found) for found in re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", text, re.MULTILINE))
            for name in ("generation_tokens", "spec_decode_num_accepted_tokens")
        )
        return made - accepted

    def known(self, begin):
        """How many requests the proposer keeps something of, as it told last since `begin` lines."""
        found = re.findall(r"keeps something of (\d+) requests", "".join(self.told[begin:]))
        return int(found[-1]) if found else None

    def post(self, **more):
        """Ask; return the text."""
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": 30,
        }
        response = httpx.post(f"{self.url}/v1/chat/completions", json={**body, **more}, timeout=300)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]


@contextmanager
def vllm():
    python, model = (os.environ.get(f"LLMA_RAG_VLLM_{name}") for name in ("PYTHON", "MODEL"))
    if not python or not model:
        pytest.skip("LLMA_RAG_VLLM_PYTHON and LLMA_RAG_VLLM_MODEL are not set")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        *shlex.split(server_arguments(model, drafted=8)),
        "--served-model-name",
        "m",
    ]
    command += ["--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "16", "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "DEBUG"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd="/"
    )
    server = VllmServer(process, f"http://127.0.0.1:{port}")
    try:
        while True:
            assert process.poll() is None, "".join(server.told[-50:])
            try:
                if httpx.get(f"{server.url}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(1)
        yield server
    finally:
        process.terminate()
        process.wait(60)
        server._reading.join(10)
        process.stdout.close()


@pytest.fixture(scope="module")
def server():
    with vllm() as one:
        yield one


async def test_the_adapters_answer_from_it(server):
    chat = ChatLLMA(**server.options)
    before = server.passes()
    answer = chat.invoke(QUESTION, references=[TEXT])
    assert server.passes() - before < answer.usage_metadata["output_tokens"] / 2
    assert answer.response_metadata["copied_spans"]
    before = server.passes()
    plain = chat.invoke(QUESTION, draft=False)
    assert server.passes() - before == plain.usage_metadata["output_tokens"]
    assert answer.content == plain.content
    assert (await chat.ainvoke(QUESTION, references=[TEXT])).content == plain.content
    assert "".join(piece.content for piece in chat.stream(QUESTION)) == plain.content
    index = IndexLLMA(**server.options).with_references([TEXT])
    assert index.chat([ChatMessage(QUESTION)]).message.content == plain.content
    assert index.complete(QUESTION).text == plain.content
    assert (await index.acomplete(QUESTION)).text == plain.content
    assert (
        LLMA(**server.options).invoke("The capital of France is")
        == index.complete("The capital of France is", formatted=True).text
    )
    assert chat.get_num_tokens("one two three") == 3


def test_a_reference_that_is_not_in_the_prompt_is_copied(server):
    chat = ChatLLMA(**server.options)
    question = "Tell me about a lighthouse."
    plain = chat.invoke(question, draft=False)
    before = server.passes()
    answer = chat.invoke(question, references=[plain.content])
    assert answer.content == plain.content
    assert server.passes() - before < answer.usage_metadata["output_tokens"] / 4


async def test_sixteen_requests_at_once_get_what_each_gets_alone(server):
    chat = ChatLLMA(**server.options)
    questions = [f"{number}. {QUESTION}" for number in range(16)]
    references = [[f"{TEXT[number:]} {number}"] for number in range(16)]
    alone = [
        chat.invoke(*asked, references=given).content
        for *asked, given in zip(questions, references, strict=True)
    ]
    together = await asyncio.gather(
        *(
            chat.ainvoke(question, references=given)
            for question, given in zip(questions, references, strict=True)
        )
    )
    assert [answer.content for answer in together] == alone


def test_aborted_requests_leave_nothing(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    begin = len(server.told)
    for _ in range(8):
        stream = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": QUESTION}],
            stream=True,
            extra_body={"ignore_eos": True, "vllm_xargs": {REFERENCES: [1, 2, 3]}},
        )
        next(iter(stream))
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 30
    while server.known(begin) != 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.known(begin) == 0


def test_hostile_references_hurt_nobody(server):
    expected = server.post()
    for hostile in ([10**9], [-5], "text", [1.5], ["x"], [5] * 10_000_000):
        assert server.post(vllm_xargs={REFERENCES: hostile}) == expected
    assert server.post() == expected
    assert server.process.poll() is None
    assert "UnusableReferencesError" in "".join(server.told)
