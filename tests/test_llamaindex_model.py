"""LlamaIndex with the demo model: the lines of its documentation, and the examples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

pytestmark = pytest.mark.model
EXAMPLES = Path(__file__).parents[1] / "examples"

FIVE_LINES = """
from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llma_rag.llamaindex import LLMA, SentenceTransformerEmbedding

Settings.llm = LLMA(model="smollm2-135m", max_tokens=32)
Settings.embed_model = SentenceTransformerEmbedding()

documents = SimpleDirectoryReader("data").load_data()
index = VectorStoreIndex.from_documents(documents)
query_engine = index.as_query_engine()
response = query_engine.query("What does error code E4 on the Morvello B2 mean?")
print(response)
"""


def run(command, folder):
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_llamaindexs_documentation_work_offline(tmp_path, capsys):
    shutil.copytree(str(files("llma_rag") / "demo" / "documents"), tmp_path / "data")
    (tmp_path / "starter.py").write_text(FIVE_LINES)
    said = run(["starter.py"], tmp_path)
    with capsys.disabled():
        print("\n" + said)
    assert "E4" in said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("query", ["copied from [1]", "quillstow-release-notes.md, similarity", "forward passes"]),
        (
            "chat",
            ["> And what", "copied from [1]", "espresso-machine-manual.md, similarity", "forward passes"],
        ),
    ],
)
def test_the_example_runs(name, expected, tmp_path):
    said = run([EXAMPLES / f"llamaindex_{name}_engine.py"], tmp_path)
    for text in expected:
        assert text in said
