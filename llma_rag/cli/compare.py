"""`llma-rag compare`: the same questions in every mode."""

from __future__ import annotations

from pathlib import Path

from llma_rag.bench import Comparison, compare, read_samples
from llma_rag.bench.compare import BASELINES, SampleComparison, environment, peak_memory_bytes
from llma_rag.bench.report import html_report, png_report, require_matplotlib
from llma_rag.cli.printing import (
    console,
    json_output,
    load_engine,
    require_writable,
    status_console,
    table,
)
from llma_rag.errors import DataError
from llma_rag.files import write_atomically
from llma_rag.models import StepShape


def run_compare(
    data: Path,
    model: str,
    dtype: str,
    width: int | None,
    candidates: int | None,
    max_tokens: int,
    limit: int | None,
    skip: int,
    max_docs: int,
    repeats: int,
    baselines: str,
    json_file: Path | None,
    html_file: Path | None,
    png_file: Path | None,
) -> None:
    """Measure, print a line per sample and the summary, draw the report."""
    chosen = _chosen_baselines(baselines)
    reports = [file for file in (html_file, png_file) if file is not None]
    for file in reports:
        require_writable(file)
    if reports:
        require_matplotlib()
    with json_output(json_file) as output:
        samples = read_samples(data, skip=skip, limit=limit)
        engine = load_engine(model, dtype, width, candidates)
        setting = {**environment(engine), "max_tokens": max_tokens, "documents": max_docs, "repeats": repeats}
        done: list[SampleComparison] = []
        with status_console.status("Comparing") as status:
            for sample in compare(
                engine,
                samples,
                max_tokens=max_tokens,
                max_docs=max_docs,
                repeats=repeats,
                baselines=chosen,
                progress=status.update,
            ):
                done.append(sample)
                status_console.print(_sample_line(sample, len(done), len(samples)))
        comparison = Comparison(setting, done, peak_memory_bytes(engine))
        output.update(comparison.to_json())
        _print_comparison(comparison)
    if html_file is not None:
        write_atomically(html_file, html_report(comparison).encode(errors="backslashreplace"))
    if png_file is not None:
        write_atomically(png_file, png_report(comparison))


def _chosen_baselines(baselines: str) -> list[str]:
    names = [name.strip() for name in baselines.split(",") if name.strip() not in ("", "none")]
    unknown = sorted(set(names) - set(BASELINES))
    if unknown:
        raise DataError(f"baselines must be among {', '.join(BASELINES)} or none, got {', '.join(unknown)}")
    return [name for name in BASELINES if name in names]


def _sample_line(sample: SampleComparison, number: int, total: int) -> str:
    ours = sample.modes["references"]
    parts = [
        f"{number}/{total} sample {sample.id}: {len(ours.token_ids)} tokens in {ours.forward_passes} passes",
        "identical" if sample.identical else "NOT IDENTICAL to greedy",
    ]
    if sample.difference is not None:
        parts.append(
            f"differs from transformers after {sample.difference['tokens_before']} tokens, where the two best "
            f"logits are {sample.difference['top2_gap']:.3g} apart"
        )
    return ", ".join(parts)


def _print_comparison(comparison: Comparison) -> None:
    summary = comparison.summary()
    made = table("mode", "prefill s", "decode s", "passes", "t/pass", "decode ×", "total ×")
    for row in comparison.totals():
        made.add_row(
            row.name,
            f"{row.prefill_s:.1f}",
            f"{row.decode_s:.1f}",
            str(row.passes),
            f"{row.tokens_per_pass:.2f}",
            f"{row.decode_times:.2f}",
            f"{row.total_times:.2f}",
        )
    console.print(made)
    setting = comparison.environment
    console.print(
        f"{setting['model']}, {setting['dtype']}, {setting['device']}, width {StepShape(setting['candidates'], setting['width'])}; t/pass: tokens "
        "per pass, ×: the mode's time over that of references"
    )
    total = summary["samples"]
    console.print(f"references identical to greedy: {summary['identical']} of {total}")
    for name, mode in (
        ("identical_transformers", "references"),
        ("identical_prompt_lookup", "prompt_lookup"),
    ):
        if name in summary:
            console.print(f"{mode} identical to transformers: {summary[name]} of {total}")
    console.print(f"peak memory {comparison.peak_memory_bytes / 2**20:.0f} MiB")
