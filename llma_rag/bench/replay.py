"""The laboratory: known answers are forced, so that drafting is measured without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from llma_rag.bench.policies import POLICIES, MakeDrafter
from llma_rag.decoding import Drafter, ReferenceDrafter, greedy_decode
from llma_rag.errors import DataError

WIDTHS = (8, 16, 32)

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Forced:
    """An answer that is known, with what it may have been copied from.

    Attributes:
        id: the sample's.
        references: ids of the references.
        prompt: ids of the prompt, where it is not among the references.
        answer: ids of the answer.
    """

    id: str
    references: list[list[int]]
    prompt: list[int]
    answer: list[int]


@dataclass(slots=True)
class Tally:
    """What a policy did at a width."""

    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    seconds: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, float]:
        """Return the figures."""
        return {
            "tokens_per_pass": self.tokens / self.passes,
            "drafted_per_pass": self.drafted / self.passes,
            "us_per_proposal": median(self.seconds) * 1e6 if self.seconds else 0.0,
        }


def policies(alike: Sequence[int] | None = None) -> dict[str, MakeDrafter]:
    """Return what makes a drafter by name, ours first, which knows which ids are alike."""
    return {"llma_rag": partial(ReferenceDrafter, alike=alike), **POLICIES}


def read_forced(path: Path, encode: Encode) -> list[Forced]:
    """Read forced answers: JSON lines with `docs` and `result.text`, or what `compare --json` has written.

    Raises:
        DataError: the file cannot be read, or holds neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the data file {path} cannot be read: {error}") from error
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and "samples" in whole:
        try:
            return list(_of_comparison(whole))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is no complete output of `compare --json`: {error!r}") from error
    return [
        _of_line(path, number, line, encode) for number, line in enumerate(text.split("\n")) if line.strip()
    ]


def replay(
    samples: Iterable[Forced],
    widths: Sequence[int] = WIDTHS,
    chosen: dict[str, MakeDrafter] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[int, Tally]]:
    """Return what each policy does at each width."""
    makers = chosen or policies()
    tallies = {name: {width: Tally() for width in widths} for name in makers}
    for sample in samples:
        progress(f"Replaying sample {sample.id}")
        for name, make in makers.items():
            for width in widths:
                force(sample, make(sample.references, sample.prompt), width, tallies[name][width])
    return tallies


def force(sample: Forced, drafter: Drafter, width: int, tally: Tally, candidates: int = 1) -> None:
    """Add to a tally what a drafter does with a known answer, in steps of a shape."""
    prompt = sample.prompt or [0]
    model = _ForcedModel(sample.answer, width, len(prompt), candidates)
    for step in greedy_decode(model, prompt, drafter, max_tokens=len(sample.answer)):
        tally.tokens += len(step.ids)
        tally.passes += 1
        tally.drafted += step.drafted
        if tally.passes > 1 and step.draft_s:
            tally.seconds.append(step.draft_s)


class _ForcedModel:
    """Predicts the ids of a known answer that begins at a position."""

    vocab_size = 1 << 30

    def __init__(self, answer: Sequence[int], width: int, begin: int, candidates: int) -> None:
        self._answer, self._width, self._begin = answer, width, begin
        self.candidates = candidates

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        return self._answer[0]

    def draft_room(self, position: int) -> int:
        return self._width - 1

    def verify(self, position: int, candidates: Sequence[Sequence[int]]) -> list[list[int]]:
        first = position - self._begin + 1
        following = list(self._answer[first : first + self._width]) + [-1] * self._width
        return [following[: len(ids)] for ids in candidates]

    def keep(self, candidate: int) -> None:
        pass


def _of_line(path: Path, number: int, line: str, encode: Encode) -> Forced:
    try:
        row: Any = json.loads(line)
        docs, answer = row["docs"], row["result"]["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"line {number + 1} of {path} must be an object with `docs` and `result.text`; the other form that can be "
            "replayed is the output of `compare --json`"
        ) from error
    if not isinstance(answer, str) or not isinstance(docs, list) or not all(isinstance(d, str) for d in docs):
        raise DataError(
            f"line {number + 1} of {path} must have a text `result.text` and a list of texts `docs`"
        )
    answer = answer.partition("####")[2] or answer
    return Forced(str(row.get("id", number)), [encode(text) for text in docs], [], encode(answer))


def _of_comparison(whole: dict[str, Any]) -> Iterator[Forced]:
    for sample in whole["samples"]:
        ids = sample["modes"]["references"]["token_ids"]
        yield Forced(str(sample["id"]), [list(sample["prompt_token_ids"])], [], list(ids))
