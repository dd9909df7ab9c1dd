"""Samples to measure on: JSON lines, each with a `query` and its `docs`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llma_rag.errors import DataError


@dataclass(frozen=True, slots=True)
class Sample:
    """A question with the documents retrieved for it, best first."""

    id: str
    query: str
    docs: list[str]


def read_samples(path: str | Path, *, skip: int = 0, limit: int | None = None) -> list[Sample]:
    """Read samples from a JSON-lines file; a line without `id` is called by its number, from 0.

    Raises:
        DataError: the file cannot be read, a line has another form, or no sample is left.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the data file {path} cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines) if line.strip()]
    end = None if limit is None else skip + limit
    samples = [_parse(path, number, line) for number, line in islice(numbered, skip, end)]
    if not samples:
        raise DataError(f"the data file {path} holds {len(numbered)} samples, none after the first {skip}")
    return samples


def _parse(path: Path, number: int, line: str) -> Sample:
    try:
        row: Any = json.loads(line)
        query, docs = row["query"], row["docs"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"line {number + 1} of {path} is not an object with `query` and `docs`") from error
    if not isinstance(query, str) or not isinstance(docs, list) or not all(isinstance(d, str) for d in docs):
        raise DataError(f"line {number + 1} of {path} must have a text `query` and a list of texts `docs`")
    return Sample(str(row.get("id", number)), query, docs)
