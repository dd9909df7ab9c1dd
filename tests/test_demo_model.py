"""The real demo model: exact in fp32 and bf16, installed once whatever happens, and the demo end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llma_rag.decoding import NoDrafter, ReferenceDrafter, greedy_decode
from llma_rag.engine import Engine
from llma_rag.models.demo_model import DEMO_MODEL
from llma_rag.prompts import documents_prompt
from llma_rag.text import Detokenizer, prompt_ids, reference_ids

pytestmark = pytest.mark.model

DOCUMENTS = sorted(path.name for path in files("llma_rag").joinpath("demo/documents").iterdir())


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request):
    return Engine.load(DEMO_MODEL, dtype=request.param)


def document(name):
    return files("llma_rag").joinpath("demo/documents", name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS[:4])
def test_references_change_no_id(engine, name):
    text = document(name)[:2500]
    prompt = documents_prompt("What does this document say?", [text])
    plain = engine.generate(prompt, references=[text], max_tokens=96, draft=False)
    drafted = engine.generate(prompt, references=[text], max_tokens=96)
    assert drafted.token_ids == plain.token_ids
    assert drafted.copied_spans == plain.copied_spans
    assert drafted.forward_passes < plain.forward_passes


def test_logits_of_200_steps_are_bit_equal(engine):
    runner = engine.runner
    text = document(DOCUMENTS[0])[:1500]
    ids = prompt_ids(engine.tokenizer, documents_prompt("Summarise this.", [text]))
    recorded = []
    copied = reference_ids(engine.tokenizer, text)
    for drafter in (NoDrafter(), ReferenceDrafter([copied], ids, scorer=runner.states)):
        recorded.append(rows := {})

        def verify(position, candidates, rows=rows):
            (ids,) = candidates
            logits = runner.verify_logits(position, ids)
            rows.update({position + row: logits[row].clone() for row in range(len(ids))})
            return [logits.argmax(dim=-1).tolist()[: len(ids)]]

        runner.verify = verify
        try:
            list(greedy_decode(runner, ids, drafter, max_tokens=200))
        finally:
            del runner.verify
    plain, drafted = recorded
    assert len(plain) == 199
    assert all(torch.equal(row, drafted[position]) for position, row in plain.items())


@settings(max_examples=50)
@given(text=st.text(max_size=80))
def test_streamed_text_of_the_real_tokenizer_is_the_text_of_its_ids(engine, text):
    ids = reference_ids(
        engine.tokenizer, text
    )  # it has no token for some bytes, so not always the text itself
    detokenizer = Detokenizer(engine.tokenizer)
    pieces = [detokenizer.feed(token_id) for token_id in ids]
    assert "".join([*pieces, detokenizer.finish()]) == engine.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_conversion_killed_half_way_is_done_again(tmp_path):
    program = "from llma_rag.models.demo_model import demo_model_folder as f; print(f(lambda t: print(t, flush=True)))"
    environment = {**os.environ, "LLMA_RAG_CACHE": str(tmp_path)}
    killed = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    while "Converting" not in killed.stdout.readline():
        pass
    time.sleep(5)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not [
        path for path in (tmp_path / "models").iterdir() if path.is_dir() and "partial" not in path.name
    ]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    (folder,) = (path for path in (tmp_path / "models").iterdir() if path.is_dir())
    assert done.stdout.splitlines()[-1] == str(folder)
    assert (folder / "model.safetensors").stat().st_size > 5 * 10**8


def test_the_demo_answers_as_expected_and_identically(tmp_path):
    output = tmp_path / "demo.json"
    done = subprocess.run(
        [sys.executable, "-c", "from llma_rag.cli import main; main()", "demo", "--json", str(output)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    questions = json.loads(output.read_text())["questions"]
    assert len(questions) >= 6
    assert all(question["identical"] for question in questions)
    assert sum(question["as_expected"] for question in questions) * 6 >= len(questions) * 5
    assert any(question["references"]["copied_spans"] for question in questions)


@pytest.mark.parametrize("example", ["ask_documents.py", "compare_with_and_without.py"])
def test_examples_run(example):
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, root / "examples" / example], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert "forward passes" in done.stdout
