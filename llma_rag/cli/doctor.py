"""`llma-rag doctor`: what this machine does with a model, and what would be better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

from llma_rag.cli.printing import console, json_output, load_engine, table
from llma_rag.engine import Engine
from llma_rag.models import StepShape
from llma_rag.models.calibration import calibrate
from llma_rag.models.linears import cpu_computes_in_bf16, packed_linears
from llma_rag.models.probe import device_name
from llma_rag.workers import worker_for


def run_doctor(
    model: str, dtype: str, width: int | None, candidates: int | None, json_file: Path | None
) -> None:
    """Load the model, measure, print."""
    with json_output(json_file) as output:
        engine = load_engine(model, dtype, width, candidates)
        findings = examine(engine)
        output.update(findings)
        facts = table("what", "here")
        for name, value in _described(findings):
            facts.add_row(name, value)
        console.print(facts)
        for advice in findings["advice"]:
            console.print(f"- {advice}")
        if not findings["advice"]:
            console.print("Nothing to change.")


def examine(engine: Engine) -> dict[str, Any]:
    """Return what is known of an engine here, and advice."""
    runner, verdict = engine.runner, engine.verdict
    shape = StepShape(runner.candidates, runner.width)
    calibration = (
        engine.calibration
        or worker_for(engine.model, runner.device.type).submit(calibrate, runner, [shape]).result()
    )
    packed, plain = packed_linears(engine.model)
    return {
        "model": engine.name,
        "device": device_name(runner.device),
        "dtype": str(runner.dtype).removeprefix("torch."),
        "threads": runner.threads,
        "width": runner.width,
        "candidates": runner.candidates,
        "exact": verdict.exact,
        "rows_compared": verdict.rows,
        "rows_different": verdict.mismatched,
        "step_s": {str(shape): seconds for shape, seconds in calibration.step_s.items()},
        "recording": runner.recording,
        "packed_linears": packed,
        "plain_linears": plain,
        "context": runner.context_length,
        "kv_bytes_per_1000_tokens": 1000 * runner.kv_bytes_per_token,
        "kv_bytes": runner.kv_bytes,
        "prefix_cache_bytes": runner.prefixes.budget,
        "advice": _advice(engine),
    }


def _advice(engine: Engine) -> list[str]:
    runner = engine.runner
    advice = []
    if not engine.verdict.exact:
        advice.append("No width is exact here, so nothing is drafted: try dtype='float32', or other threads.")
    if runner.device.type == "cpu":
        if runner.dtype == torch.float32 and cpu_computes_in_bf16():
            advice.append("This CPU multiplies in bfloat16: dtype='bfloat16' halves what a step reads.")
        cores = psutil.cpu_count(logical=False) or runner.threads
        if runner.threads < cores:
            advice.append(f"torch uses {runner.threads} of {cores} cores: raise OMP_NUM_THREADS.")
        if runner.kv_bytes > psutil.virtual_memory().total / 4:
            advice.append("The KV memory takes over a quarter of the machine's memory: lower max_context.")
        if torch.cuda.is_available():
            advice.append("There is a CUDA device: device='cuda'.")
        if runner.candidates > 1:
            advice.append("On a CPU rows are not cheap: without candidates, one draft per step is checked.")
    if engine.calibration is None:
        advice.append("The width was given: without width, the best one is measured and kept.")
    return advice


def _described(findings: dict[str, Any]) -> list[tuple[str, str]]:
    step = ", ".join(
        f"{shape}: {seconds * 1e3:.1f} ms"
        for shape, seconds in sorted(findings["step_s"].items(), key=lambda step: step[1])
    )
    equal = findings["rows_compared"] - findings["rows_different"]
    verdict = "exact" if findings["exact"] else "not exact"
    return [
        ("model", findings["model"]),
        ("device", findings["device"]),
        ("dtype", findings["dtype"]),
        ("width", str(StepShape(findings["candidates"], findings["width"]))),
        ("probe", f"{verdict} ({equal} of {findings['rows_compared']} rows bit-equal)"),
        ("step by width", step),
        ("linear layers", f"{findings['packed_linears']} packed, {findings['plain_linears']} plain"),
        ("CUDA graphs", findings["recording"]),
        ("context", f"{findings['context']} tokens"),
        ("KV per 1,000 tokens", f"{findings['kv_bytes_per_1000_tokens'] / 2**20:.1f} MiB"),
        ("KV memory", f"{findings['kv_bytes'] / 2**20:.0f} MiB"),
        ("prefix cache", f"up to {findings['prefix_cache_bytes'] / 2**20:.0f} MiB"),
    ]
