"""A comparison as a picture and as a page that needs no network."""

from __future__ import annotations

from collections import Counter
from io import BytesIO, StringIO
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llma_rag.bench.compare import Comparison, SampleComparison
from llma_rag.errors import LlmaRagError
from llma_rag.provenance import CopiedSpan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "references": "#1b7837",
    "greedy": "#9970ab",
    "transformers": "#4575b4",
    "prompt_lookup": "#e08214",
}
_DRAFTING = ("references", "prompt_lookup")
_BAR_INCHES = 0.14
_PAGE_INCHES = 11.0
_MOST_INCHES = 200.0


def require_matplotlib() -> None:
    """Raise LlmaRagError where charts cannot be drawn, before anything is measured for them."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise LlmaRagError(
            "charts need matplotlib; install it with `pip install 'llma-rag[report]'`"
        ) from error


def png_report(comparison: Comparison) -> bytes:
    """Return the charts as a PNG picture."""
    picture = BytesIO()
    _charts(comparison).savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def html_report(comparison: Comparison) -> str:
    """Return a page with charts, figures, the environment, and answers with their copied words marked."""
    environment = Environment(
        loader=PackageLoader("llma_rag.bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page: str = environment.get_template("report.html").render(
        environment=_flat(comparison.environment),
        summary=comparison.summary(),
        modes=comparison.totals(),
        colours=_COLOURS,
        samples=[_sample(sample) for sample in comparison.samples],
        charts=_svg(_charts(comparison)),
        peak_mib=comparison.peak_memory_bytes / 2**20,
    )
    return page


def marked_pieces(text: str, spans: list[CopiedSpan]) -> list[tuple[str, CopiedSpan | None]]:
    """Return the text in pieces, each with the span that it is copied by; of overlapping spans the first wins."""
    cuts = sorted({0, len(text), *(place for span in spans for place in (span.start, span.end))})
    parts = [
        (text[start:end], next((span for span in spans if span.start <= start and end <= span.end), None))
        for start, end in pairwise(cuts)
    ]
    by_span = groupby(parts, key=lambda part: part[1])
    return [("".join(piece for piece, _ in group), span) for span, group in by_span]


def _sample(sample: SampleComparison) -> dict[str, Any]:
    ours = sample.modes["references"]
    return {
        "id": sample.id,
        "query": sample.sample.query,
        "docs": sample.sample.docs,
        "pieces": marked_pieces(sample.text, sample.copied_spans),
        "sources": sorted({span.reference_index for span in sample.copied_spans}),
        "identical": sample.identical,
        "difference": sample.difference,
        "tokens": len(ours.token_ids),
        "modes": sample.modes,
        "times": {
            name: (mode.prefill_s + mode.decode_s) / (ours.prefill_s + ours.decode_s)
            for name, mode in sample.modes.items()
        },
    }


def _flat(environment: dict[str, Any]) -> dict[str, str]:
    versions = environment["versions"]
    words = {True: "yes", False: "no"}
    settings = {
        name: words[value] if isinstance(value, bool) else str(value)
        for name, value in environment.items()
        if name != "versions"
    }
    return {**settings, "versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def _charts(comparison: Comparison) -> Figure:
    from matplotlib.figure import Figure

    bars = len(comparison.samples) * (len(comparison.samples[0].modes) + 1)
    width = min(max(_PAGE_INCHES, bars * _BAR_INCHES), _MOST_INCHES)
    figure = Figure(figsize=(width, 10.5), layout="constrained")
    seconds, tokens, accepted = figure.subplots(3)
    _draw_seconds(seconds, comparison)
    _draw_tokens(tokens, comparison)
    _draw_accepted(accepted, comparison)
    return figure


def _draw_seconds(axes: Axes, comparison: Comparison) -> None:
    for name, places in _bar_places(comparison, list(comparison.samples[0].modes)).items():
        measured = [sample.modes[name] for sample in comparison.samples]
        prefill_s = [one.prefill_s for one in measured]
        decode_s = [one.decode_s for one in measured]
        axes.bar(places, prefill_s, color=_COLOURS[name], alpha=0.45)
        axes.bar(places, decode_s, bottom=prefill_s, color=_COLOURS[name], label=name)
    axes.set_title("Seconds by sample: prefill (pale) and decode")
    axes.set_ylabel("seconds")
    _name_samples(axes, comparison)


def _draw_tokens(axes: Axes, comparison: Comparison) -> None:
    drafting = [name for name in _DRAFTING if name in comparison.samples[0].modes]
    for name, places in _bar_places(comparison, drafting).items():
        measured = [sample.modes[name] for sample in comparison.samples]
        rates = [len(one.token_ids) / one.forward_passes for one in measured]
        axes.bar(places, rates, color=_COLOURS[name], label=name, width=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_title("Tokens per forward pass by sample; 1 without drafts")
    axes.set_ylabel("tokens per pass")
    _name_samples(axes, comparison, len(drafting))


def _draw_accepted(axes: Axes, comparison: Comparison) -> None:
    from matplotlib.ticker import MaxNLocator

    drafting = [name for name in _DRAFTING if name in comparison.samples[0].modes]
    for number, name in enumerate(drafting):
        lengths = Counter(
            length for sample in comparison.samples for length in sample.modes[name].accepted_lengths
        )
        shares = {length: count / lengths.total() for length, count in sorted(lengths.items())}
        places = [length + 0.4 * (number - (len(drafting) - 1) / 2) for length in shares]
        axes.bar(places, list(shares.values()), width=0.4, color=_COLOURS[name], label=name)
    axes.set_title("How many drafted tokens a pass accepts")
    axes.set_xlabel("accepted tokens")
    axes.set_ylabel("share of passes")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _bar_places(comparison: Comparison, modes: list[str]) -> dict[str, list[float]]:
    step = len(modes) + 1
    return {
        mode: [step * number + offset for number in range(len(comparison.samples))]
        for offset, mode in enumerate(modes)
    }


def _name_samples(axes: Axes, comparison: Comparison, modes: int | None = None) -> None:
    modes = len(comparison.samples[0].modes) if modes is None else modes
    centres = [(modes + 1) * number + (modes - 1) / 2 for number in range(len(comparison.samples))]
    names = [sample.id for sample in comparison.samples]
    axes.set_xticks(centres, names, rotation=45, ha="right", parse_math=False)
    axes.set_xlim(-1, (modes + 1) * len(comparison.samples) - 1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _svg(figure: Figure) -> str:
    """Return a figure as an SVG element, its words as text."""
    import matplotlib

    picture = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llma_rag"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    return svg[svg.index("<svg") :]
