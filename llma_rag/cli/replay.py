"""`llma-rag replay`: drafting policies on known answers, without a model."""

from __future__ import annotations

from pathlib import Path

from llma_rag.bench.replay import WIDTHS, Tally, policies, read_forced, replay
from llma_rag.cli.printing import console, json_output, status_console, table
from llma_rag.errors import DataError
from llma_rag.models.loading import load_tokenizer
from llma_rag.text import alike_ids, reference_ids


def run_replay(data: Path, tokenizer: str, skip: int, limit: int | None, json_file: Path | None) -> None:
    """Force the answers, print a table of tokens per pass."""
    with json_output(json_file) as output:
        with status_console.status("Reading") as status:
            encoder = load_tokenizer(tokenizer)
            samples = read_forced(data, lambda text: reference_ids(encoder, text))
            held = len(samples)
            samples = samples[skip:][:limit]
            if not samples:
                raise DataError(f"{data} holds {held} answers, none after the first {skip}")
            tallies = replay(samples, chosen=policies(alike_ids(encoder)), progress=status.update)
        figures = {
            name: {str(width): tally.to_json() for width, tally in by_width.items()}
            for name, by_width in tallies.items()
        }
        output.update({"data": data.name, "samples": len(samples), "policies": figures})
        _print(tallies, len(samples))


def _print(tallies: dict[str, dict[int, Tally]], samples: int) -> None:
    figures = table("policy", *(f"{what}{width}" for width in WIDTHS for what in ("t/", "d/")), "µs")
    for name, by_width in tallies.items():
        of_width = {width: tally.to_json() for width, tally in by_width.items()}
        cells = [
            f"{of_width[width][what]:.2f}"
            for width in WIDTHS
            for what in ("tokens_per_pass", "drafted_per_pass")
        ]
        figures.add_row(name, *cells, f"{of_width[WIDTHS[-1]]['us_per_proposal']:.1f}")
    console.print(figures)
    console.print(
        f"{samples} samples; t/8: tokens per pass at width 8, d/8: drafted ids per pass; µs per proposal at width "
        f"{WIDTHS[-1]}"
    )
