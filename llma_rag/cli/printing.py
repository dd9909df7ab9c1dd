"""What the commands share: the console, quiet model loading, copied words, JSON files."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llma_rag.errors import DataError
from llma_rag.files import write_atomically
from llma_rag.provenance import MIN_COPIED, CopiedSpan

if TYPE_CHECKING:
    from llma_rag.engine import Engine
    from llma_rag.generation import Generation
    from llma_rag.retrieval import Hit

_COPIED_STYLES = ("black on green", "black on cyan", "black on yellow", "black on magenta", "black on blue")

console = Console(highlight=False, markup=False, emoji=False)
status_console = Console(stderr=True, highlight=False, markup=False, emoji=False)


def quiet_libraries() -> None:
    """Keep the progress bars and notices of the libraries out of our output; call it before they are imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what matters of a file is told as an error
    warnings.filterwarnings("ignore", module="transformers|huggingface_hub|sentence_transformers")


def load_engine(model: str, dtype: str, width: int | None, candidates: int | None = None) -> Engine:
    """Load an engine, telling on stderr what takes long."""
    from llma_rag.engine import Engine  # only now: a mistake in the arguments is told at once
    from llma_rag.models import StepShape

    with status_console.status("Loading") as status:
        engine = Engine.load(model, dtype=dtype, width=width, candidates=candidates, progress=status.update)
    verdict = engine.verdict
    exact = "exact" if verdict.exact else "not exact at any width: decoding without drafts"
    status_console.print(
        f"{engine.name}, {str(engine.runner.dtype).removeprefix('torch.')} on {engine.runner.device}, "
        f"width {StepShape(verdict.candidates, verdict.width)}: {exact} ({verdict.rows - verdict.mismatched} of {verdict.rows} rows bit-equal)"
    )
    return engine


def printable(text: str) -> str:
    """Return the text with control characters shown as a mark each: documents must not steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def copied_style(number: int) -> str:
    """Return the colours of what is copied from a source of this number, from 1."""
    return _COPIED_STYLES[(number - 1) % len(_COPIED_STYLES)]


def highlighted(text: str, spans: Sequence[CopiedSpan]) -> Text:
    """Return the text with copied words marked, one colour per reference."""
    marked = Text(printable(text))
    for span in spans:
        marked.stylize(copied_style(span.reference_index + 1), span.start, span.end)
    return marked


def print_copied_words(answer: Generation) -> None:
    """Print the answer with copied words marked; where there are no colours, the words by reference."""
    if not answer.copied_spans:
        console.rule(f"No words copied ({MIN_COPIED} characters in a row at least)")
        return
    console.rule("Copied words")
    if console.is_terminal:
        console.print(highlighted(answer.text, answer.copied_spans))
        return
    for span in answer.copied_spans:
        words = printable(answer.text[span.start : span.end])
        console.print(f"  [{span.reference_index + 1}] {words!r}", soft_wrap=True)


def shown_path(source: str) -> str:
    """Return a path as short as it can be, seen from here."""
    path = Path(source)
    return printable(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def source_line(number: int, hit: Hit) -> Text:
    """Return a line that names a retrieved passage, in the colour of its copied words."""
    chunk = hit.chunk
    line = Text("  ")
    line.append(f"[{number}]", copied_style(number))
    line.append(f" {shown_path(chunk.source)}")
    if chunk.page is not None:
        line.append(f", page {chunk.page}")
    if chunk.headings:
        line.append(f", {printable(' > '.join(chunk.headings))}")
    line.append(f", characters {chunk.start} to {chunk.end}")
    if hit.similarity is not None:
        line.append(f", similarity {hit.similarity:.2f}")
    return line


def figures(answer: Generation) -> str:
    """Return an answer's figures in a line."""
    timings = answer.timings
    return (
        f"{answer.completion_tokens} tokens in {answer.forward_passes} forward passes "
        f"({answer.tokens_per_pass:.2f} per pass), prefill {timings.prefill_s:.2f} s, "
        f"decode {timings.decode_s:.2f} s, {answer.copied_coverage:.0%} of the text copied"
        + (", cut at the token limit" if answer.finish_reason == "length" else "")
    )


def table(*columns: str) -> Table:
    """Return an empty table whose columns after the first are numbers."""
    made = Table()
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position == 0 else "right")
    return made


@contextmanager
def json_output(path: Path | None) -> Iterator[dict[str, Any]]:
    """Collect what a command prints and write it at the end; check first that it can be written."""
    collected: dict[str, Any] = {}
    if path is not None:
        require_writable(path)
    ending: BaseException | None = None
    try:
        yield collected
    except typer.Exit as error:
        ending = error
    if path is not None:
        content = json.dumps(collected, indent=1, ensure_ascii=False)
        write_atomically(path, content.encode(errors="backslashreplace"))  # as JSON escapes lone surrogates
    if ending is not None:
        raise ending


def require_writable(path: Path) -> None:
    """Raise DataError unless a file can be written there."""
    if not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent} for {path.name}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise DataError(f"{path} cannot be written; name a file in a folder of yours")
