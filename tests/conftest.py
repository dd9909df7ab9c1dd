"""Fixtures: tiny random models, a tiny real tokenizer, and example counts scaled by one variable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: tests need no network

EXAMPLES = int(os.environ.get("LLMA_RAG_EXAMPLES", "100"))  # per property; raise it for a long run
settings.register_profile(
    "llma_rag",
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("llma_rag")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the fast tier out of the user's cache; the model tier shares it, to convert only once."""
    if "not model" not in (request.config.option.markexpr or "not model"):
        yield
        return
    before = os.environ.get("LLMA_RAG_CACHE")
    os.environ["LLMA_RAG_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LLMA_RAG_CACHE"]
    else:
        os.environ["LLMA_RAG_CACHE"] = before


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama in safetensors and its tokenizer."""
    from tests.tiny import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
