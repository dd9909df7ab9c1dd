"""What to copy: places where the output's last ids occurred vote on what comes next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import exp, isfinite
from statistics import fmean
from typing import Protocol

from llma_rag.decoding.matching import MOST_LENGTH, Match, NgramIndex, matches

_MOST_PLACES = 64  # that vote
_NEAR = 2  # ids from the place last copied from within which a place is favoured


@dataclass(frozen=True, slots=True)
class _Weights:
    """What makes a place a likely one: logarithms of its vote, per unit."""

    length: float  # per id of context that agrees
    near: float  # where the last draft would go on
    likeness: float  # of the model's states, -1 to 1


# Fitted on demo-model answers to 28 samples each of three data sets; see the changelog for the other 12 of each.
_WITH_STATES = _Weights(length=0.3, near=1.0, likeness=5.0)
_WITHOUT_STATES = _Weights(length=1.0, near=2.0, likeness=0.0)


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """When to copy and how much.

    Attributes:
        match_length: ids that must agree before anything is copied; n in arXiv:2304.04487.
        copy_length: most ids to copy at once; k in arXiv:2304.04487. None fills the verify step.
    """

    match_length: int = 1
    copy_length: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.match_length <= MOST_LENGTH:
            raise ValueError(f"match_length must be from 1 to {MOST_LENGTH}, got {self.match_length}")
        if self.copy_length is not None and self.copy_length < 1:
            raise ValueError(
                f"copy_length must be at least 1, got {self.copy_length}; use draft=False for plain greedy"
            )


class Drafter(Protocol):
    """Proposes the ids that may come next; a wrong proposal costs time, never a token."""

    def extend(self, ids: Iterable[int]) -> None:
        """Take note of ids that were accepted into the output."""

    def propose(self, room: int, count: int = 1) -> list[list[int]]:
        """Return at most `count` drafts of at most `room` ids each, best first; none is a plain step."""


class Scorer(Protocol):
    """What the model left behind at each position of the context, prompt and output together."""

    def scores(self, candidate_positions: Sequence[int], position: int) -> list[float]:
        """Return how alike the model's states at each candidate and at `position` are, -1 to 1."""


class NoDrafter:
    """Proposes nothing: plain greedy decoding."""

    def extend(self, ids: Iterable[int]) -> None:
        """Ignore the output."""

    def propose(self, room: int, count: int = 1) -> list[list[int]]:
        """Return no draft."""
        return []


class ReferenceDrafter:
    """Copies what followed the output's last ids in the output, the prompt or a reference, as these places vote.

    A place weighs more, the more of its context agrees, where the last draft goes on there, and the more alike the
    model's states before it and before the output's last id are (as in PLD+, arXiv:2412.01447). Each
    next id is the one with the most weight behind it, and places that dissent drop out; on equal weights the output
    wins over the prompt, the prompt over the references, and these by rank. Where no place matches, the place last
    copied from goes on, or ids alike (but for case and a space before them) serve. Retrieved documents, earlier
    answers and the conversation so far, the three cases of arXiv:2304.04487, are all references.

    Args:
        references: the references' ids, best first; an `NgramIndex` is used as it is. Those that the prompt shows
            are not searched twice.
        prompt_ids: ids of the prompt, itself always a reference.
        config: when to copy and how much.
        scorer: tells how alike places of the prompt and the output are to the model.
        alike: for each id the one that stands for all ids like it.
    """

    def __init__(
        self,
        references: Iterable[NgramIndex | Sequence[int]],
        prompt_ids: Sequence[int],
        config: DraftConfig | None = None,
        *,
        scorer: Scorer | None = None,
        alike: Sequence[int] | None = None,
    ) -> None:
        self._config = config or DraftConfig()
        self._scorer = scorer
        self._weights = _WITHOUT_STATES if scorer is None else _WITH_STATES
        self._context = NgramIndex(prompt_ids, alike)  # the output is appended to it
        self._output: list[int] = []
        self._indexes = [self._context]
        for ids in references:
            if not self._context.holds(ids.ids if isinstance(ids, NgramIndex) else ids):
                self._indexes.append(ids if isinstance(ids, NgramIndex) else NgramIndex(ids, alike))
        self._place: Match | None = None  # where the last draft goes on

    def extend(self, ids: Iterable[int]) -> None:
        """Take note of the output; the place last copied from moves on with it."""
        for token_id in ids:
            self._context.append(token_id)
            self._output.append(token_id)
            if self._place is not None:
                self._place = self._place._replace(end=self._place.end + 1)

    def propose(self, room: int, count: int = 1) -> list[list[int]]:
        """Return drafts by the votes: each next one by places that agree with no draft before it."""
        room = min(room, self._config.copy_length or room)
        if room < 1 or not self._output:
            return []
        drafts: list[list[int]] = []
        place = None
        for found in self._places():
            voters = [
                (match, exp(weight)) for match, weight in zip(found, self._log_weights(found), strict=True)
            ]
            while voters := [voter for voter in voters if not _agrees_with_any(voter[0], drafts)]:
                draft, supporter = _vote(voters, room)
                place = place or supporter
                drafts.append(draft)
                if len(drafts) == count:
                    break
            if len(drafts) == count:
                break
        self._place = place or self._place
        return drafts

    def _places(self) -> Iterator[Sequence[Match]]:
        """Yield places to copy from in groups, the likeliest first."""
        yield matches(self._indexes, self._output, _MOST_PLACES, self._config.match_length)
        if self._config.match_length == 1:
            alike = chain.from_iterable(index.matches_alike(self._output) for index in self._indexes)
            yield list(islice(alike, _MOST_PLACES))
            if self._place is not None and self._place.end < len(self._place.ids):
                yield [self._place]

    def _log_weights(self, found: Sequence[Match]) -> list[float]:
        """Return the logarithms of the votes, the greatest 0."""
        weights = [
            self._weights.length * match.length + self._weights.near * self._is_near(match) for match in found
        ]
        if self._scorer is not None and len(found) > 1:
            likeness = self._likeness(self._scorer, found)
            weights = [
                weight + self._weights.likeness * one for weight, one in zip(weights, likeness, strict=True)
            ]
        greatest = max(weights, default=0.0)
        return [weight - greatest for weight in weights]

    def _likeness(self, scorer: Scorer, found: Sequence[Match]) -> list[float]:
        """Return the scores of places in the context; of places elsewhere, of which the model knows nothing, the mean."""
        known = [
            number
            for number, match in enumerate(found)
            if match.ids is self._context.ids
            and match.end > 1  # there is a position before the match's last id
        ]
        if not known:
            return [0.0] * len(found)
        here = len(self._context) - 2  # before the output's last id, which is not computed yet
        scores = scorer.scores([found[number].end - 2 for number in known], here)
        scores = [min(1.0, max(-1.0, score)) if isfinite(score) else 0.0 for score in scores]
        likeness = [fmean(scores)] * len(found)
        for number, score in zip(known, scores, strict=True):
            likeness[number] = score
        return likeness

    def _is_near(self, match: Match) -> bool:
        place = self._place
        return place is not None and match.ids is place.ids and abs(match.end - place.end) <= _NEAR


def _vote(voters: Sequence[tuple[Match, float]], room: int) -> tuple[list[int], Match]:
    """Return the draft that the places elect id by id, and the weightiest place that stood by its first id."""
    draft: list[int] = []
    supporter = voters[0][0]
    while len(draft) < room and voters:
        if len(voters) == 1:
            match = voters[0][0]
            following = match.ids[match.end + len(draft) : match.end + room]
        else:
            following = _elected(voters, len(draft))
        if not following:
            break
        voters = [
            (match, weight)
            for match, weight in voters
            if match.ids[match.end + len(draft) : match.end + len(draft) + 1] == following[:1]
        ]
        if not draft:
            supporter = max(voters, key=lambda voter: voter[1])[0]
        draft += following
    return draft, supporter


def _elected(voters: Sequence[tuple[Match, float]], ahead: int) -> list[int]:
    """Return the id with the most weight behind it, `ahead` ids after the places; nothing where all have ended."""
    weights: defaultdict[int, float] = defaultdict(float)
    for match, weight in voters:
        if match.end + ahead < len(match.ids):
            weights[match.ids[match.end + ahead]] += weight
    return [max(weights, key=weights.__getitem__)] if weights else []


def _agrees_with_any(match: Match, drafts: Iterable[list[int]]) -> bool:
    """Return whether what followed a place is one of the drafts, as far as both go."""
    return any(match.continuation(len(draft)) == draft[: len(match.ids) - match.end] for draft in drafts)
