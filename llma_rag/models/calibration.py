"""The width that is best here: a short measurement of steps, and the best one that passes the probe."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from transformers import PreTrainedModel

from llma_rag.errors import ModelError
from llma_rag.files import cache_path, write_atomically
from llma_rag.models.probe import Verdict, cached_probe, fingerprint, require_agreement
from llma_rag.models.runner import ModelRunner

_WIDTHS = {"cpu": (8, 16, 4), "cuda": (16, 8, 32)}  # candidates; on equal terms in this order
_EXPECTED_TOKENS = {4: 1.96, 8: 2.26, 16: 2.41, 32: 2.46}  # per pass, mean of three data sets; see speed.md
_ABOUT_EQUAL = 0.95  # a wider step that is almost as good is better where more is copied than in those
_CONTEXT = 1000  # positions before the measured steps, where the context has so many
_ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a verify step costs here.

    Attributes:
        step_s: seconds by width, medians.
    """

    step_s: dict[int, float]

    @property
    def ranked(self) -> list[int]:
        """Widths, best first: most expected tokens per second; of those about equal to the best, the widest."""
        rate = {width: _EXPECTED_TOKENS[width] / seconds for width, seconds in self.step_s.items()}
        by_rate = sorted(rate, key=rate.__getitem__, reverse=True)
        equal = [width for width in by_rate if rate[width] >= _ABOUT_EQUAL * rate[by_rate[0]]]
        return sorted(equal, reverse=True) + by_rate[len(equal) :]


def exact_runner(
    model: PreTrainedModel,
    width: int | None,
    max_context: int | None,
    threads: int,
    prefix_cache_bytes: int = 0,
) -> tuple[ModelRunner, Verdict, Calibration | None]:
    """Return a runner at the best width that passes the probe; without one, a runner that must not draft.

    Args:
        model: to run.
        width: positions per verify step; None chooses.
        max_context: see `ModelRunner`.
        threads: see `ModelRunner`.
        prefix_cache_bytes: see `ModelRunner`.

    Raises:
        UnsupportedModelError: the architecture cannot be decoded exactly.
        ModelError: the width that was asked for is not exact here, or the KV memory does not fit.
    """
    candidates = _WIDTHS.get(model.device.type, _WIDTHS["cpu"]) if width is None else (width,)
    runner = ModelRunner(model, candidates[0], max_context, threads, prefix_cache_bytes)
    require_agreement(runner)
    calibration = cached_calibration(runner, candidates) if width is None else None
    failed = []
    for runner.width in calibration.ranked if calibration else candidates:
        verdict = cached_probe(runner)
        if verdict.exact:
            return runner, verdict, calibration
        failed.append(verdict)
    if width is not None:
        raise ModelError(
            f"steps of width {width} are not exact here ({failed[0].mismatched} of {failed[0].rows} rows "
            "differ); use another width, multiples of 8 are the safest, or width=None to choose"
        )
    runner.width = failed[0].width
    return runner, failed[0], calibration


def calibrate(runner: ModelRunner, widths: Sequence[int]) -> Calibration:
    """Measure steps of each width, interleaved; the KV memory is zeroed afterwards."""
    widths = [width for width in widths if 2 * width <= runner.context_length]
    position = min(_CONTEXT, runner.context_length - 2 * max(widths, default=0))
    before = runner.width
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    try:
        for _ in range(_ROUNDS + 1):
            for runner.width in widths:
                started = time.perf_counter()
                runner.verify(position, [0])
                seconds[runner.width].append(time.perf_counter() - started)
    finally:
        runner.width = before
        runner.zero_memory()
    return Calibration({width: median(measured[1:]) for width, measured in seconds.items()})


def cached_calibration(runner: ModelRunner, widths: Sequence[int]) -> Calibration:
    """Return the step costs for this model, device, dtype, threads and versions, measured once."""
    path = cache_path("calibration") / f"{fingerprint(runner, widths=widths)}.json"
    with suppress(OSError, ValueError, TypeError, AttributeError):  # never measured, or damaged: measure
        read = {int(width): float(seconds) for width, seconds in json.loads(path.read_bytes()).items()}
        if read and set(read) <= set(widths):
            return Calibration(read)
    calibration = calibrate(runner, widths)
    with suppress(OSError):  # a cache that cannot be written costs the next measurement, no more
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(calibration.step_s).encode())
    return calibration
