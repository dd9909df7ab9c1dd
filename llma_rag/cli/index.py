"""`llma-rag index`: documents into a store, and kept there as they change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from llma_rag.cli.printing import console, json_output, printable, shown_path, status_console
from llma_rag.errors import DocumentError
from llma_rag.retrieval import DocumentStore, IndexReport, Skipped, embedder_named, index_documents
from llma_rag.retrieval.discovery import find_files
from llma_rag.retrieval.embedding import DEFAULT_EMBEDDING_MODEL
from llma_rag.retrieval.indexing import IndexProgress
from llma_rag.retrieval.reading import SUFFIXES, no_documents
from llma_rag.retrieval.watching import changes

_LISTED_PER_REASON = 20


def run_index(
    paths: Sequence[Path],
    store_folder: Path,
    embedding_model: str | None,
    watch: bool,
    json_file: Path | None,
) -> None:
    """Read what is new or changed, remove what has vanished; exit with code 1 if a file is broken."""
    with json_output(json_file) as output, _opened(paths, store_folder, embedding_model) as store:

        def index() -> IndexReport:
            report = _index(store, paths)
            _print_report(report, store, store_folder)
            output.update(asdict(report), total_documents=len(store.documents()), total_chunks=len(store))
            return report

        if watch:
            _follow(paths, index)
        elif index().broken:
            raise typer.Exit(1)


def _opened(paths: Sequence[Path], folder: Path, embedding_model: str | None) -> DocumentStore:
    """Open the store for writing; a new one only where the paths and the embedding model are right."""
    is_new = not DocumentStore.exists(folder)
    if embedding_model is None and not is_new:
        embedding_model = DocumentStore.embedding_model(folder)
    embedder = embedder_named(embedding_model or DEFAULT_EMBEDDING_MODEL)
    if is_new:
        if not find_files(paths, SUFFIXES).files:
            raise no_documents(paths)
        embedder.load()
    return DocumentStore.open(folder, embedder, write=True)


def _follow(paths: Sequence[Path], index: Callable[[], IndexReport]) -> None:
    """Index now and after every change, until the user ends it."""
    try:
        for _ in changes(paths):
            try:
                index()
            except DocumentError as error:  # nothing is left, for now
                status_console.print(printable(f"{error}"), soft_wrap=True)
            status_console.print("Watching for changes; Ctrl+C ends it")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _index(store: DocumentStore, paths: Sequence[Path]) -> IndexReport:
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[chunks]} passages, {task.fields[rate]:.0f} a second"),
        TimeElapsedColumn(),
        console=status_console,
    ) as bar:
        task = bar.add_task("Looking for changes", total=None, chunks=0, rate=0.0)

        def show(progress: IndexProgress) -> None:
            bar.update(
                task,
                description="Indexing",
                total=progress.files,
                completed=progress.files_done,
                chunks=progress.embedded_chunks,
                rate=progress.embedded_chunks / max(bar.tasks[task].elapsed or 0.0, 1e-3),
            )

        return index_documents(store, paths, progress=show)


def _print_report(report: IndexReport, store: DocumentStore, folder: Path) -> None:
    for reason, skipped in _by_reason(report.skipped).items():
        for one in skipped[:_LISTED_PER_REASON]:
            console.print(f"not read: {shown_path(one.path)}: {printable(reason)}", soft_wrap=True)
        if len(skipped) > _LISTED_PER_REASON:
            console.print(
                f"not read: {len(skipped) - _LISTED_PER_REASON} more: {printable(reason)}", soft_wrap=True
            )
    console.print(
        f"{report.new} new, {report.changed} changed, {report.unchanged} unchanged, {report.removed} removed, "
        f"{len(report.skipped)} not read"
    )
    console.print(
        f"{report.chunks} passages read, {report.embedded_chunks} of them embedded; the store {folder} holds "
        f"{len(store)} passages of {len(store.documents())} documents"
    )


def _by_reason(skipped: Sequence[Skipped]) -> dict[str, list[Skipped]]:
    grouped: dict[str, list[Skipped]] = defaultdict(list)
    for one in skipped:
        grouped[one.reason].append(one)
    return grouped
