"""Compare drafters inside vLLM: forward passes and seconds of the same answers, and whether they are the same.

    python examples/vllm/compare.py --vllm-python ENV/bin/python --model MODEL

with ENV and MODEL made by set_up.sh. Three sets of twenty prompts over the packaged documents: the text to quote is in
the prompt; the same question was answered before, and that answer is sent as a reference (which only ours can be); nothing to copy
from.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files

import httpx

from llma_rag.prompts import quoting_prompt
from llma_rag.retrieval import Chunk, read_documents, split_documents
from llma_rag.vllm import as_xargs

DRAFTED = 8
MAX_TOKENS = 96
PROMPTS = 20
OURS: dict[str, object] = {
    "method": "custom_class",
    "model": "llma_rag.vllm.ReferenceProposer",
    "num_speculative_tokens": DRAFTED,
}
SPECULATION: dict[str, dict[str, object] | None] = {
    "none": None,
    "ngram": {
        "method": "ngram",
        "num_speculative_tokens": DRAFTED,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 4,
    },
    "suffix": {"method": "suffix", "num_speculative_tokens": DRAFTED},
    "suffix, nothing remembered": {
        "method": "suffix",
        "num_speculative_tokens": DRAFTED,
        "suffix_decoding_max_cached_requests": 0,
    },
    "llma_rag": OURS,
    "llma_rag, answers remembered": OURS,
}
ENVIRONMENT = {"llma_rag, answers remembered": {"LLMA_RAG_REMEMBERED_IDS": "50000"}}
WARMING = [{"role": "user", "content": "Count from one to fifty in words."}]
SETS = ("text in the prompt", "earlier answer outside it", "nothing to copy from")


def main() -> None:
    """Run all servers one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", required=True, help="of the environment that has vLLM")
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--drafters", default=";".join(SPECULATION), help="separated by ;, none comes first")
    options = parser.parse_args()
    prompts = _prompts()
    expected: dict[str, list[str]] = {}
    print(
        "| drafter | prompts | same text | passes | tokens | seconds |", "|---|---|---|---|---|---|", sep="\n"
    )
    for name in options.drafters.split(";"):
        with _server(options.vllm_python, options.model, name) as server:
            _ask(server, WARMING, [])
            for kind in SETS:
                earlier = expected[kind] if SPECULATION[name] is OURS and kind == SETS[1] else [""] * PROMPTS
                before, begun = _passes(server), time.perf_counter()
                answers = [
                    _ask(server, *asked) for asked in zip(prompts[kind], map(_one, earlier), strict=True)
                ]
                seconds, after = time.perf_counter() - begun, _passes(server)
                expected.setdefault(kind, answers)
                same = sum(map(str.__eq__, answers, expected[kind]))
                passes, tokens = (now - then for now, then in zip(after, before, strict=True))
                print(
                    f"| {name} | {kind} | {same}/{PROMPTS} | {passes:.0f} | {tokens:.0f} | {seconds:.1f} |",
                    flush=True,
                )


def _one(text: str) -> list[str]:
    return [text] if text else []


def _prompts() -> dict[str, list[list[dict[str, str]]]]:
    with as_file(files("llma_rag").joinpath("demo/documents")) as folder:
        documents = read_documents([folder])
    chunks = split_documents(documents, lambda text: len(text.split()))[: 3 * PROMPTS]
    sets = {kind: chunks[number::3] for number, kind in enumerate(SETS)}
    return {
        kind: [_prompt(chunk, [chunk.text] if kind == SETS[0] else []) for chunk in sets[kind]]
        for kind in SETS
    }


def _prompt(chunk: Chunk, passages: list[str]) -> list[dict[str, str]]:
    subject = chunk.headings[-1] if chunk.headings else " ".join(chunk.text.split()[:5])
    return quoting_prompt(f"What does the text say about {subject}?", passages)


def _ask(server: httpx.Client, messages: list[dict[str, str]], references: list[str]) -> str:
    ids = [
        server.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
        for text in references
    ]
    body = {
        "model": "model",
        "messages": messages,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "vllm_xargs": as_xargs(ids),
    }
    response = server.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


def _passes(server: httpx.Client) -> tuple[float, float]:
    """Return forward passes that made tokens, and tokens, so far."""
    text = server.get("/metrics").text

    def total(name: str) -> float:
        return sum(
            float(value) for value in re.findall(rf"^vllm:{name}_total\{{.*\}} (\S+)$", text, re.MULTILINE)
        )

    tokens = total("generation_tokens")
    return tokens - total("spec_decode_num_accepted_tokens"), tokens


@contextmanager
def _server(python: str, model: str, name: str) -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--served-model-name",
        "model",
    ]
    command += ["--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "16", "--port", str(port)]
    if SPECULATION[name]:
        command += ["--speculative-config", json.dumps(SPECULATION[name])]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **ENVIRONMENT.get(name, {})}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            while True:
                try:
                    if client.get("/health").is_success:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None:
                    sys.exit(f"the server ended with code {process.returncode}")
                time.sleep(1)
            yield client
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
