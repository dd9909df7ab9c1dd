"""The vector index: exact FAISS search up to a size, inverted lists beyond. Knows numbers and vectors only."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from llma_rag.retrieval.embedding import Vectors

Numbers = NDArray[np.int64]

EXACT_UP_TO = 100_000  # vectors; where one exact search takes about as long as a person notices
TARGET_RECALL = 0.97
_TUNING_QUERIES = 200
_TUNING_K = 10
_TUNING_MIX = (
    6  # passages whose mean is as far from all passages as questions are, and a little harder to serve
)
_TRAINING_PER_LIST = 39  # fewer vectors, and FAISS warns that the lists are poor
_MAX_LOOPS = 2**28
_limits = threading.Lock()  # FAISS keeps its limits for the whole process


@dataclass(frozen=True, slots=True)
class IndexShape:
    """How the vectors are searched.

    Attributes:
        lists: inverted lists; 0 where the search is exact.
        probes: lists that a search reads.
        recall: the share of the exact ten best that a search finds, measured when the lists were made.
        trained_on: vectors there were then.
    """

    lists: int = 0
    probes: int = 0
    recall: float = 1.0
    trained_on: int = 0

    @property
    def kind(self) -> str:
        """What the index is called."""
        return "inverted lists" if self.lists else "exact"


class VectorIndex:
    """Unit vectors under numbers that the caller gives, searched by inner product.

    Args:
        dimension: numbers per vector.
        exact_up_to: vectors up to which `reorganize` keeps the search exact.
    """

    def __init__(self, dimension: int, exact_up_to: int = EXACT_UP_TO) -> None:
        self.shape = IndexShape()
        self._exact_up_to = exact_up_to
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Numbers per vector."""
        return int(self._index.d)

    @property
    def numbers(self) -> Numbers:
        """The numbers in use, in no certain order."""
        if not self.shape.lists:
            return np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)
        lists = self._index.invlists
        parts = [
            faiss.rev_swig_ptr(lists.get_ids(one), lists.list_size(one)).copy()
            for one in range(lists.nlist)
            if lists.list_size(one)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def add(self, numbers: Numbers, vectors: Vectors) -> None:
        """Add vectors (numbers, dimension); no number may be in use already."""
        self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), numbers)

    def remove(self, numbers: Numbers) -> None:
        """Remove the vectors of these numbers, those that there are."""
        selector = faiss.IDSelectorArray(numbers) if self.shape.lists else faiss.IDSelectorBatch(numbers)
        self._index.remove_ids(selector)

    def search(self, vector: Vectors, k: int, among: Numbers | None = None) -> tuple[list[int], list[float]]:
        """Return the numbers and similarities of the `k` nearest, best first; exact among given numbers."""
        if among is None and self.shape.lists:
            parameters = faiss.SearchParametersIVF(nprobe=self.shape.probes)
        elif among is None:
            parameters = None
        elif self.shape.lists:
            parameters = faiss.SearchParametersIVF(sel=faiss.IDSelectorBatch(among), nprobe=self.shape.lists)
        else:
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBatch(among))
        scores, numbers = self._index.search(vector[None], min(k, len(self)), params=parameters)
        found = numbers[0] >= 0
        return numbers[0][found].tolist(), scores[0][found].tolist()

    def vectors_of(self, numbers: Sequence[int] | Numbers) -> Vectors:
        """Return the vectors of these numbers, which must be in use, (numbers, dimension)."""
        return np.asarray(self._index.reconstruct_batch(np.asarray(numbers, np.int64)), np.float32)

    def reorganize(self) -> None:
        """Change to inverted lists, to better ones, or back to exact search, as the size asks for."""
        if self.shape.lists and len(self) < self._exact_up_to // 2:
            self._replace(faiss.IndexIDMap2(faiss.IndexFlatIP(self.dimension)), IndexShape())
        elif len(self) > max(self._exact_up_to, 4 * self.shape.trained_on):
            self._make_lists()

    def _make_lists(self) -> None:
        lists = max(1, min(int(2 * len(self) ** 0.5), len(self) // _TRAINING_PER_LIST))
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(self.dimension), self.dimension, lists, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed = 0
        numbers = self.numbers
        sample = np.random.default_rng(0).permutation(numbers)[: 64 * lists]
        index.train(self.vectors_of(sample))
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
        self._replace(index, IndexShape(lists=lists, trained_on=len(numbers)))
        probes, recall = self._tune()
        self.shape = IndexShape(lists, probes, recall, len(numbers))

    def _replace(self, index: Any, shape: IndexShape) -> None:
        numbers = self.numbers
        if len(numbers):
            index.add_with_ids(self.vectors_of(numbers), numbers)
        self._index, self.shape = index, shape

    def _tune(self) -> tuple[int, float]:
        """Return the fewest probes that reach the target, and the recall then, on means of stored vectors."""
        random = np.random.default_rng(1)
        numbers = random.choice(self.numbers, (_TUNING_QUERIES, _TUNING_MIX))
        queries = self.vectors_of(numbers.ravel()).reshape(*numbers.shape, -1).mean(axis=1)
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-9)
        truth = self._nearest(queries, self.shape.lists)
        probes, recall = 1, 0.0
        while True:
            found = self._nearest(queries, probes)
            recall = float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))
            if recall >= TARGET_RECALL or probes >= self.shape.lists:
                return probes, recall
            probes = min(self.shape.lists, max(probes + 1, probes * 5 // 4))

    def _nearest(self, queries: Vectors, probes: int) -> Numbers:
        parameters = faiss.SearchParametersIVF(nprobe=probes)
        numbers: Numbers = self._index.search(queries, min(_TUNING_K, len(self)), params=parameters)[1]
        return numbers

    def to_bytes(self) -> bytes:
        """Return the vectors and their numbers in FAISS' form."""
        return bytes(faiss.serialize_index(self._index).tobytes())

    @classmethod
    def from_bytes(
        cls, content: bytes, dimension: int, shape: IndexShape, exact_up_to: int = EXACT_UP_TO
    ) -> VectorIndex:
        """Return the index that `to_bytes` wrote.

        Raises:
            ValueError: the content is of another form, kind or dimension.
        """
        made = cls(dimension, exact_up_to)
        made._index, made.shape = _parse(content), shape
        wanted = faiss.IndexIVFFlat if shape.lists else faiss.IndexIDMap2
        if type(made._index) is not wanted:
            raise ValueError(f"it holds a {type(made._index).__name__}, not a {wanted.__name__}")
        inner = made._index.quantizer if shape.lists else made._index.index
        if type(faiss.downcast_index(inner)) is not faiss.IndexFlatIP:
            raise ValueError(f"it holds a {type(faiss.downcast_index(inner)).__name__} inside")
        if made._index.d != dimension or inner.d != dimension:
            raise ValueError(f"its vectors have {made._index.d} numbers, not {dimension}")
        if shape.lists != (made._index.nlist if shape.lists else 0) or not 0 <= shape.probes <= shape.lists:
            raise ValueError(f"it has other inverted lists than {shape.lists} with {shape.probes} probes")
        if len(made.numbers) != len(made):
            raise ValueError(f"it has {len(made.numbers)} numbers for {len(made)} vectors")
        if shape.lists:  # the file's own map from numbers to places is not trusted
            made._index.set_direct_map_type(faiss.DirectMap.NoMap)
            made._index.set_direct_map_type(faiss.DirectMap.Hashtable)
        return made


def _parse(content: bytes) -> Any:
    """Deserialize with limits, so that a length in a hostile file cannot ask for the machine's memory."""
    with _limits:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(max(len(content), 1))
        faiss.set_deserialization_loop_limit(_MAX_LOOPS)
        try:
            return faiss.deserialize_index(np.frombuffer(content, np.uint8))
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"FAISS cannot read it: {str(error).strip().splitlines()[-1][:200]}") from error
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def digest(content: bytes) -> str:
    """Return the SHA-256 of a content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
