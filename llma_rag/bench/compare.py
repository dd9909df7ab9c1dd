"""The comparison: each sample answered in every mode, interleaved, warmed up, on the same prompt ids."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import psutil
import torch
import transformers

from llma_rag import __version__
from llma_rag.bench.baselines import Measurement, StockModel
from llma_rag.bench.data import Sample
from llma_rag.engine import Engine
from llma_rag.errors import DataError, ModelError
from llma_rag.models.loading import load_model
from llma_rag.models.probe import device_name
from llma_rag.prompts import documents_prompt
from llma_rag.provenance import CopiedSpan, as_references, copied_spans
from llma_rag.text import prompt_ids
from llma_rag.workers import worker_for

BASELINES = ("transformers", "prompt_lookup")
_WARM_UP_TOKENS = 8

Measure = Callable[[Sample, int], Measurement]


@dataclass(frozen=True, slots=True)
class SampleComparison:
    """One sample: what each mode took, medians of the repeats.

    `difference` tells where `references` first leaves `transformers`: the number of ids before, and how far
    the two best logits are apart there; None where the ids are equal or that mode did not run.
    """

    sample: Sample
    prompt_token_ids: list[int]
    modes: dict[str, Measurement]
    difference: dict[str, float] | None
    text: str
    copied_spans: list[CopiedSpan]

    @property
    def id(self) -> str:
        """The sample's id."""
        return self.sample.id

    def to_json(self) -> dict[str, Any]:
        """Return the figures as data, without the texts."""
        return {
            "id": self.id,
            "prompt_token_ids": self.prompt_token_ids,
            "modes": {name: {**asdict(mode), "accepted": mode.accepted} for name, mode in self.modes.items()},
            "difference": self.difference,
        }

    @property
    def identical(self) -> bool:
        """Whether references changed nothing."""
        return self.modes["references"].token_ids == self.modes["greedy"].token_ids


@dataclass(frozen=True, slots=True)
class ModeTotals:
    """A mode over all samples; `decode_times` and `total_times` are its time over that of `references`."""

    name: str
    prefill_s: float
    decode_s: float
    passes: int
    tokens_per_pass: float
    decode_times: float
    total_times: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All samples with the environment they ran in."""

    environment: dict[str, Any]
    samples: list[SampleComparison]
    peak_memory_bytes: int

    def summary(self) -> dict[str, Any]:
        """Return the figures over all samples; a speed-up is a mode's time over that of `references`."""
        references = [sample.modes["references"] for sample in self.samples]
        others = [mode for mode in self.samples[0].modes if mode != "references"]
        return {
            "samples": len(self.samples),
            "identical": sum(sample.identical for sample in self.samples),
            **self._equal_to_transformers(),
            "tokens_per_pass": sum(len(one.token_ids) for one in references)
            / sum(one.forward_passes for one in references),
            "drafted_per_pass": sum(one.drafted for one in references)
            / sum(one.forward_passes for one in references),
            "speedup_decode": {mode: self._speedup(mode, total=False) for mode in others},
            "speedup_total": {mode: self._speedup(mode, total=True) for mode in others},
        }

    def totals(self) -> list[ModeTotals]:
        """Return what each mode took over all samples, `references` first."""
        rows = []
        for mode in self.samples[0].modes:
            measured = [sample.modes[mode] for sample in self.samples]
            passes = sum(one.forward_passes for one in measured)
            rows.append(
                ModeTotals(
                    mode,
                    sum(one.prefill_s for one in measured),
                    sum(one.decode_s for one in measured),
                    passes,
                    sum(len(one.token_ids) for one in measured) / passes,
                    self._speedup(mode, total=False),
                    self._speedup(mode, total=True),
                )
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return everything as data."""
        return {
            "environment": self.environment,
            "samples": [sample.to_json() for sample in self.samples],
            "peak_memory_bytes": self.peak_memory_bytes,
            "summary": self.summary(),
        }

    def _equal_to_transformers(self) -> dict[str, int]:
        """Count for each mode that drafts how often its ids are those of plain `generate`."""
        modes = self.samples[0].modes
        named = {"identical_transformers": "references", "identical_prompt_lookup": "prompt_lookup"}
        return {
            name: sum(
                sample.modes[mode].token_ids == sample.modes["transformers"].token_ids
                for sample in self.samples
            )
            for name, mode in named.items()
            if mode in modes and "transformers" in modes
        }

    def _speedup(self, mode: str, *, total: bool) -> float:
        return self._seconds(mode, total=total) / self._seconds("references", total=total)

    def _seconds(self, mode: str, *, total: bool) -> float:
        measured = [sample.modes[mode] for sample in self.samples]
        return sum(one.decode_s + (one.prefill_s if total else 0.0) for one in measured)


def compare(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    max_tokens: int = 128,
    max_docs: int = 5,
    repeats: int = 1,
    baselines: Sequence[str] = BASELINES,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[SampleComparison]:
    """Yield the samples as they are done: `references`, `greedy` and the baselines, one after another.

    Args:
        engine: an engine made by `Engine.load`; the baselines load the same model again where it was packed.
        samples: questions with documents.
        max_tokens: most ids per answer.
        max_docs: most documents in the prompt and as references.
        repeats: answers per sample and mode; times are their medians.
        baselines: from `BASELINES`.
        progress: told what is going on when it takes long.
    """
    for sample in samples:
        _require_room(engine, sample, max_docs)
    stock = _stock_model(engine, progress) if baselines else None
    modes = _modes(engine, stock, max_docs, baselines)
    progress("Warming up")
    for measure in modes.values():
        measure(samples[0], min(_WARM_UP_TOKENS, max_tokens))
    for sample in samples:
        runs: dict[str, list[Measurement]] = {mode: [] for mode in modes}
        for repeat in range(repeats):
            for mode, measure in modes.items():
                progress(f"Sample {sample.id}, {mode}, run {repeat + 1} of {repeats}")
                runs[mode].append(measure(sample, max_tokens))
        measured = {mode: _median_of(several) for mode, several in runs.items()}
        docs = sample.docs[:max_docs]
        ids = prompt_ids(engine.tokenizer, documents_prompt(sample.query, docs))
        text = engine.tokenizer.decode(measured["references"].token_ids, skip_special_tokens=True)
        yield SampleComparison(
            sample=Sample(sample.id, sample.query, docs),
            prompt_token_ids=ids,
            modes=measured,
            difference=_first_difference(ids, measured, stock, engine),
            text=text,
            copied_spans=copied_spans(text, as_references(docs)),
        )


def environment(engine: Engine) -> dict[str, Any]:
    """Return what a figure must be quoted with."""
    return {
        "model": engine.name,
        "device": device_name(engine.runner.device),
        "dtype": str(engine.runner.dtype).removeprefix("torch."),
        "width": engine.runner.width,
        "candidates": engine.runner.candidates,
        "max_context": engine.runner.context_length,
        "exact": engine.verdict.exact,
        "threads": engine.runner.threads,
        "platform": platform.platform(),
        "versions": {
            "llma_rag": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def peak_memory_bytes(engine: Engine) -> int:
    """Return the most memory that was in use: the device's on CUDA, else the process's."""
    if engine.runner.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(engine.runner.device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _require_room(engine: Engine, sample: Sample, max_docs: int) -> None:
    """Refuse a sample that does not fit before anything is measured."""
    tokens = engine.count_tokens(documents_prompt(sample.query, sample.docs[:max_docs]))
    if tokens >= engine.runner.context_length:
        raise DataError(
            f"the prompt of sample {sample.id} has {tokens} tokens, but the context holds "
            f"{engine.runner.context_length}; lower --max-docs or leave the sample out"
        )


def _stock_model(engine: Engine, progress: Callable[[str], None]) -> StockModel:
    """Return the engine's model as transformers runs it; on the CPU its packed layers need a second copy."""
    if engine.runner.device.type != "cpu":
        return StockModel(engine.model)
    dtype = str(engine.runner.dtype).removeprefix("torch.")
    loaded = load_model(engine.name, device="cpu", dtype=dtype, progress=progress)
    return StockModel(loaded.model)


def _modes(
    engine: Engine, stock: StockModel | None, max_docs: int, baselines: Sequence[str]
) -> dict[str, Measure]:
    worker = worker_for(engine.model, engine.runner.device.type)

    def ours(draft: bool) -> Measure:
        def measure(sample: Sample, max_tokens: int) -> Measurement:
            docs = sample.docs[:max_docs]
            answer = engine.generate(
                documents_prompt(sample.query, docs),
                references=docs,
                max_tokens=max_tokens,
                draft=draft,
                reuse_prefix=False,
            )
            return Measurement(
                answer.timings.prefill_s,
                answer.timings.decode_s,
                answer.forward_passes,
                answer.drafted,
                answer.accepted_lengths,
                answer.token_ids,
            )

        return measure

    def theirs(model: StockModel, prompt_lookup: bool) -> Measure:
        def measure(sample: Sample, max_tokens: int) -> Measurement:
            ids = prompt_ids(engine.tokenizer, documents_prompt(sample.query, sample.docs[:max_docs]))
            return worker.submit(model.measure, ids, max_tokens, prompt_lookup=prompt_lookup).result()

        return measure

    modes = {"references": ours(draft=True), "greedy": ours(draft=False)}
    for baseline in baselines:
        assert stock is not None
        modes[baseline] = theirs(stock, prompt_lookup=baseline == "prompt_lookup")
    return modes


def _median_of(runs: Sequence[Measurement]) -> Measurement:
    """Return the runs' common result with median times."""
    first = runs[0]
    if any(run.token_ids != first.token_ids for run in runs):
        raise ModelError(
            "the same mode gave different ids when it was repeated; nothing here can be compared"
        )
    return Measurement(
        median(run.prefill_s for run in runs),
        median(run.decode_s for run in runs),
        first.forward_passes,
        first.drafted,
        first.accepted_lengths,
        first.token_ids,
    )


def _first_difference(
    prompt: list[int], measured: dict[str, Measurement], stock: StockModel | None, engine: Engine
) -> dict[str, float] | None:
    if stock is None or "transformers" not in measured:
        return None
    ours, theirs = measured["references"].token_ids, measured["transformers"].token_ids
    if ours == theirs:
        return None
    common = next(
        (index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    worker = worker_for(engine.model, engine.runner.device.type)
    gap = worker.submit(stock.top2_gap, [*prompt, *ours[:common]]).result()
    return {"tokens_before": common, "top2_gap": gap}
