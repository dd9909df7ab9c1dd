"""Comparing answers with references, without, and by transformers itself, on the same prompts."""

from llma_rag.bench.compare import Comparison, compare
from llma_rag.bench.data import Sample, read_samples

__all__ = ["Comparison", "Sample", "compare", "read_samples"]
