"""The package itself: what importing it loads, its public names, layers, and clean tools."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import llma_rag
import llma_rag.langchain
import llma_rag.llamaindex

ROOT = Path(llma_rag.__file__).parent
HEAVY = {
    "torch",
    "transformers",
    "langchain_core",
    "llama_index",
    "faiss",
    "sentence_transformers",
    "typer",
    "rich",
    "fastapi",
    "uvicorn",
}


def loaded_by(statement):
    program = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "module",
    [
        "llma_rag",
        "llma_rag.decoding",
        "llma_rag.errors",
        "llma_rag.provenance",
        "llma_rag.langchain",
        "llma_rag.llamaindex",
    ],
)
def test_importing_loads_nothing_heavy(module):
    assert not HEAVY & loaded_by(f"import {module}")


def test_decoding_needs_only_the_standard_library():
    bare = loaded_by("pass")
    added = loaded_by("import llma_rag.decoding, llma_rag.decoding.naive") - bare - {"llma_rag"}
    assert added <= set(sys.stdlib_module_names)


def test_public_names_are_sorted_and_importable():
    assert list(llma_rag.__all__) == sorted(llma_rag.__all__)
    for package in (llma_rag, llma_rag.langchain, llma_rag.llamaindex):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = package.nothing


MODULES = sorted(module.name for module in pkgutil.walk_packages([str(ROOT)], "llma_rag."))

# layer: what it must not import
SURFACES = ("serving", "bench", "cli", "langchain", "llamaindex")
TOP = ("calls", "conversation", "settings", *SURFACES)
FORBIDDEN = {
    "decoding": ("models", "text", "provenance", "retrieval", "engine", "references", "replies", *TOP),
    "models": ("text", "provenance", "retrieval", "engine", "references", "replies", *TOP),
    "text": ("models", "provenance", "retrieval", "engine", "references", "replies", *TOP),
    "provenance": ("models", "text", "retrieval", "engine", "references", "replies", *TOP),
    "replies": ("models", "provenance", "retrieval", "engine", "references", *TOP),
    "retrieval": ("decoding", "models", "text", "provenance", "engine", "references", "replies", *TOP),
    "engine": ("retrieval", "references", "replies", *TOP),
    "references": ("models", "text", "engine", "replies", *TOP),
    "calls": ("retrieval", "references", "settings", "conversation", *SURFACES),
    "settings": ("references", "replies", "calls", "conversation", *SURFACES),
    "conversation": SURFACES,
    "serving": ("bench", "cli", "langchain", "llamaindex"),
    "langchain": ("bench", "cli", "conversation", "serving", "llamaindex"),
    "llamaindex": ("bench", "cli", "conversation", "serving", "langchain"),
    "bench": ("cli", "conversation", "serving", "langchain", "llamaindex"),
    "cli": ("langchain", "llamaindex"),
    "vllm": ("models", "text", "provenance", "retrieval", "engine", "references", "replies", "errors", *TOP),
}
FRAMEWORKS = {"langchain_core": "langchain", "langchain": "langchain", "llama_index": "llamaindex"}


@pytest.mark.parametrize("module", MODULES)
def test_layers_do_not_import_upwards(module):
    source = importlib.util.find_spec(module).origin
    imported = set()
    for node in ast.walk(ast.parse(Path(source).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    layer = module.split(".")[1]
    for name in imported:
        assert FRAMEWORKS.get(name.split(".")[0], layer) == layer, name
    for lower in FORBIDDEN.get(layer, ()):
        assert not [name for name in imported if name.startswith(f"llma_rag.{lower}")], layer


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_are_true(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_demo_questions_quote_the_packaged_documents():
    demo = files("llma_rag").joinpath("demo")
    texts = [path.read_text(encoding="utf-8") for path in demo.joinpath("documents").iterdir()]
    questions = json.loads(demo.joinpath("questions.json").read_text(encoding="utf-8"))
    assert len(texts) >= 8
    assert sum(len(text.encode()) for text in texts) >= 40_000
    assert len(questions) >= 6
    for question in questions:
        assert sum(question["expected"] in text for text in texts) == 1


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy", "--strict", "llma_rag"]],
    ids=lambda command: " ".join(command[:2]),
)
def test_tools_find_nothing(command):
    if not (ROOT.parent / "pyproject.toml").exists():
        pytest.skip("not a source checkout")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
