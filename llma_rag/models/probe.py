"""Exactness, probed and not assumed: rows of a verify step must not depend on their place or neighbours.

The same random ids are computed one by one, in full steps and in irregular ones, among random padding,
at several extents of the KV memory. Every logit must come out bit-equal.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from llma_rag.errors import UnsupportedModelError
from llma_rag.files import cache_path, write_atomically
from llma_rag.models.linears import cpu_computes_in_bf16
from llma_rag.models.memory import view_at
from llma_rag.models.runner import ModelRunner

_FORMAT = 5  # raise it when the probe or the passes change
_MIN_AGREEMENT = 0.97  # cosine of our logits with the model's own forward


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether verify steps of a width are exact here.

    Attributes:
        width: positions per candidate of a verify step.
        exact: every logit compared was bit-equal.
        rows: rows compared.
        mismatched: rows with a differing logit.
        candidates: drafts that a verify step checks side by side.
    """

    width: int
    exact: bool
    rows: int
    mismatched: int
    candidates: int = 1


def probe(runner: ModelRunner, *, seed: int = 0) -> Verdict:
    """Compare chunkings of the same ids bit by bit; the KV memory is zeroed afterwards."""
    random = Random(seed)
    rows = mismatched = 0
    try:
        runner.scramble_memory(torch.Generator().manual_seed(seed))
        for start in _starts(runner):
            ids = [random.randrange(runner.vocab_size) for _ in range(_probe_length(runner, start))]
            expected = _logits_by_chunks(runner, start, ids, _full_chunks(len(ids), runner.width), random)
            for chunks in ([1] * len(ids), _irregular_chunks(len(ids), runner.width, random)):
                observed = _logits_by_chunks(runner, start, ids, chunks, random)
                equal = (expected == observed).all(dim=-1)
                rows += len(ids)
                mismatched += int((~equal).sum())
    finally:
        runner.zero_memory()
    return Verdict(runner.width, rows > 0 and mismatched == 0, rows, mismatched, runner.candidates)


def cached_probe(runner: ModelRunner) -> Verdict:
    """Return the verdict for this model geometry, device, dtype, width, threads and versions."""
    path = (
        cache_path("probes") / f"{fingerprint(runner, width=runner.width, candidates=runner.candidates)}.json"
    )
    verdict = _read_verdict(path)
    if verdict is None:
        verdict = probe(runner)
        with suppress(OSError):  # a cache that cannot be written costs the next probe, no more
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(asdict(verdict)).encode())
    return verdict


def require_agreement(runner: ModelRunner, *, seed: int = 0) -> None:
    """Refuse a model whose fixed-shape passes differ from its own forward by more than rounding.

    Raises:
        UnsupportedModelError: the agreement of the logits is too low.
    """
    random = Random(seed)
    count = min(24, runner.context_length - runner.width - 1)
    ids = [random.randrange(runner.vocab_size) for _ in range(count + runner.width)]
    stock = runner.stock_logits(ids)[count:].float()  # (width, vocab)
    runner.prefill(ids[:count])
    ours = runner.verify_logits(count, ids[count:]).float()
    runner.zero_memory()
    agreement = torch.cosine_similarity(stock, ours, dim=-1).median().item()
    if not agreement >= _MIN_AGREEMENT:
        raise UnsupportedModelError(
            f"models of type {runner.model.config.model_type!r} cannot be decoded exactly: logits of "
            f"fixed-shape passes agree with the model's own only to {agreement:.3f} "
            f"(at least {_MIN_AGREEMENT} wanted)"
        )


def _starts(runner: ModelRunner) -> Iterator[int]:
    """Yield where to probe: at the beginning, up to the end of a view, in longer views and in the longest."""
    longest = runner.context_length - runner.width - 4
    for start in (3, view_at(0) - runner.width - 3, 700, 3000, longest):
        if start == longest or 0 <= start < longest - view_at(0):
            yield max(0, start)


def _probe_length(runner: ModelRunner, start: int) -> int:
    room = min(view_at(start), runner.context_length) - start  # a step must not straddle two views
    return min(runner.width + 3, room)


def _full_chunks(length: int, width: int) -> list[int]:
    return [min(width, length - begin) for begin in range(0, length, width)]


def _irregular_chunks(length: int, width: int, random: Random) -> list[int]:
    chunks: list[int] = []
    while sum(chunks) < length:
        chunks.append(min(random.randint(1, width), length - sum(chunks)))
    return chunks


def _logits_by_chunks(
    runner: ModelRunner, start: int, ids: Sequence[int], chunks: Iterable[int], random: Random
) -> torch.Tensor:
    """Return the logits (len(ids), vocab), computed chunk after chunk as any candidate, among random ids."""
    logits, done = [], 0
    for size in chunks:
        chunk = ids[done : done + size]
        candidates = [
            [chunk[0], *(random.randrange(runner.vocab_size) for _ in range(runner.width - 1))]
            for _ in range(runner.candidates)
        ]
        chosen = random.randrange(runner.candidates)
        candidates[chosen][:size] = chunk
        logits.append(runner.step_logits(start + done, candidates)[chosen, :size])
        runner.keep(chosen)
        done += size
    return torch.cat(logits)


def fingerprint(runner: ModelRunner, **more: Any) -> str:
    """Return a name for what bits and seconds depend on: geometry, device, dtype, threads, versions, and `more`."""
    config = runner.model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures"):
        config.pop(name, None)
    described = {
        "format": _FORMAT,
        "config": config,
        "class": type(runner.model).__name__,
        "linears": sorted({type(module).__name__ for module in runner.model.modules()}),
        **more,
        "context": runner.context_length,
        "dtype": str(runner.dtype),
        "device": device_name(runner.device),
        "bf16": runner.device.type == "cpu" and cpu_computes_in_bf16(),
        "processor": _processor(),
        "recording": runner.recording,
        "threads": runner.threads,
        "versions": [torch.__version__, transformers.__version__, platform.python_version()],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _processor() -> str:
    """Return what kind of processor this is, as far as the system tells."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(
            sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        )
    return platform.processor()


def device_name(device: torch.device) -> str:
    """Return the device in words, such as `cpu (x86_64, AVX2, 2 threads)` or `cuda:0 (NVIDIA H100)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device} ({platform.machine()}, {capability}, {torch.get_num_threads()} threads)"


def _read_verdict(path: Path) -> Verdict | None:
    try:
        return Verdict(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None  # never probed, or a file that somebody damaged: probe again
