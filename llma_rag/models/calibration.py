"""The step that is best here: a short measurement of several shapes, and the best one that passes the probe."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from statistics import median

import torch
from transformers import PreTrainedModel

from llma_rag.errors import ModelError
from llma_rag.files import cache_path, write_atomically
from llma_rag.models.probe import Verdict, cached_probe, fingerprint, require_agreement
from llma_rag.models.runner import ModelRunner, StepShape

# Candidates for a device; on equal terms in this order. Drafts side by side are for where rows are cheap.
_SHAPES = {
    "cpu": (StepShape(1, 8), StepShape(1, 16), StepShape(1, 4)),
    "cuda": (StepShape(1, 16), StepShape(1, 8), StepShape(1, 32), StepShape(4, 8), StepShape(4, 16)),
}
# Tokens per pass, geometric mean over three data sets; see speed.md.
_EXPECTED_TOKENS = {
    1: {4: 2.12, 8: 2.53, 16: 2.76, 32: 2.85},
    2: {4: 2.24, 8: 2.71, 16: 2.97, 32: 3.08},
    4: {4: 2.32, 8: 2.83, 16: 3.12, 32: 3.23},
    8: {4: 2.38, 8: 2.93, 16: 3.23, 32: 3.36},
}
_ABOUT_EQUAL = 0.95  # a wider step that is almost as good is better where more is copied than in those
_CONTEXT = 1000  # positions before the measured steps, where the context has so many
_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a verify step costs here.

    Attributes:
        step_s: seconds by shape, medians.
    """

    step_s: dict[StepShape, float]

    @property
    def ranked(self) -> list[StepShape]:
        """Shapes, best first: most expected tokens per second; of those about equal to the best, the widest."""
        rate = {shape: _expected_tokens(shape) / seconds for shape, seconds in self.step_s.items()}
        by_rate = sorted(rate, key=rate.__getitem__, reverse=True)
        equal = [shape for shape in by_rate if rate[shape] >= _ABOUT_EQUAL * rate[by_rate[0]]]
        return sorted(equal, key=_expected_tokens, reverse=True) + by_rate[len(equal) :]


def exact_runner(
    model: PreTrainedModel,
    width: int | None,
    max_context: int | None,
    threads: int,
    prefix_cache_bytes: int = 0,
    candidates: int | None = None,
) -> tuple[ModelRunner, Verdict, Calibration | None]:
    """Return a runner at the best shape that passes the probe; without one, a runner that must not draft.

    Args:
        model: to run.
        width: positions per verify step; None chooses.
        max_context: see `ModelRunner`.
        threads: see `ModelRunner`.
        prefix_cache_bytes: see `ModelRunner`.
        candidates: drafts side by side; None chooses, 1 where the width is given.

    Raises:
        UnsupportedModelError: the architecture cannot be decoded exactly.
        ModelError: the width that was asked for is not exact here, or the KV memory does not fit.
    """
    shapes = _shapes(model.device.type, width, candidates)

    def make(shape: StepShape) -> ModelRunner:
        made = ModelRunner(
            model, shape.width, max_context, threads, prefix_cache_bytes, candidates=shape.candidates
        )
        require_agreement(made)
        return made

    runner = make(shapes[0])
    calibration = cached_calibration(runner, shapes) if width is None else None
    failed = []
    for shape in calibration.ranked if calibration else shapes:
        runner = _with_candidates(runner, shape, make)
        if runner.candidates != shape.candidates:
            continue
        runner.width = shape.width
        verdict = cached_probe(runner)
        if verdict.exact:
            return runner, verdict, calibration
        failed.append(verdict)
    if width is not None:
        raise ModelError(
            f"steps of width {shapes[0]} are not exact here ({failed[0].mismatched} of {failed[0].rows} rows "
            "differ); use another width, multiples of 8 are the safest, or width=None to choose"
        )
    runner = _with_candidates(runner, StepShape(failed[0].candidates, failed[0].width), make)
    runner.width = failed[0].width
    return runner, failed[0], calibration


def _with_candidates(
    runner: ModelRunner, shape: StepShape, make: Callable[[StepShape], ModelRunner]
) -> ModelRunner:
    """Return the runner, or one with a shape's candidates in its place; the same again if that one does not fit."""
    if runner.candidates == shape.candidates:
        return runner
    before = StepShape(runner.candidates, runner.width)
    runner.close()
    try:
        return make(shape)
    except (ModelError, torch.OutOfMemoryError):
        return make(before)


def calibrate(runner: ModelRunner, shapes: Sequence[StepShape]) -> Calibration:
    """Measure steps of each shape that fits, interleaved; the runner's KV memory is zeroed afterwards."""
    shapes = [shape for shape in shapes if 2 * shape.width <= runner.context_length]
    position = min(_CONTEXT, runner.context_length - 2 * max((shape.width for shape in shapes), default=0))
    runners = {runner.candidates: runner}
    for candidates in {shape.candidates for shape in shapes} - runners.keys():
        with suppress(ModelError, torch.OutOfMemoryError):  # a memory for so many does not fit
            runners[candidates] = runner.smaller(position, candidates)
    shapes = [shape for shape in shapes if shape.candidates in runners]
    before = runner.width
    seconds: dict[StepShape, list[float]] = {shape: [] for shape in shapes}
    try:
        for _ in range(_ROUNDS + 1):
            for shape in shapes:
                seconds[shape].append(_step_s(runners[shape.candidates], shape.width, position))
    finally:
        runner.width = before
        runner.zero_memory()
        for other in runners.values():
            if other is not runner:
                other.close()
    return Calibration({shape: median(several[1:]) for shape, several in seconds.items()})


def _step_s(runner: ModelRunner, width: int, position: int) -> float:
    runner.width = width
    started = time.perf_counter()
    runner.verify(position, [[0]])
    runner.keep(0)
    return time.perf_counter() - started


def cached_calibration(runner: ModelRunner, shapes: Sequence[StepShape]) -> Calibration:
    """Return the step costs for this model, device, dtype, threads and versions, measured once."""
    named = {str(shape): shape for shape in shapes}
    path = cache_path("calibration") / f"{fingerprint(runner, shapes=sorted(named))}.json"
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):  # never measured, or damaged
        read = {named[name]: float(seconds) for name, seconds in json.loads(path.read_bytes()).items()}
        if read and all(isfinite(seconds) and seconds > 0 for seconds in read.values()):
            return Calibration(read)
    calibration = calibrate(runner, shapes)
    with suppress(OSError):  # a cache that cannot be written costs the next measurement, no more
        path.parent.mkdir(parents=True, exist_ok=True)
        step_s = {str(shape): seconds for shape, seconds in calibration.step_s.items()}
        write_atomically(path, json.dumps(step_s).encode())
    return calibration


def _shapes(device: str, width: int | None, candidates: int | None) -> Sequence[StepShape]:
    """Return the shapes to choose from."""
    if width is not None:
        return (StepShape(candidates or 1, width),)
    shapes = _SHAPES.get(device, _SHAPES["cpu"])
    if candidates is None:
        return shapes
    return tuple(StepShape(candidates, shape.width) for shape in shapes if shape.candidates == 1)


def _expected_tokens(shape: StepShape) -> float:
    by_width = _EXPECTED_TOKENS[max(count for count in _EXPECTED_TOKENS if count <= shape.candidates)]
    return by_width[shape.width]
