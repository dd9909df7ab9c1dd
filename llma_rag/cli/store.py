"""`llma-rag store`: what a store holds, and taking documents out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llma_rag.cli.printing import console, json_output, printable, shown_path
from llma_rag.errors import DocumentError
from llma_rag.retrieval import DocumentStore, embedder_named


def run_info(folder: Path, json_file: Path | None) -> None:
    """Check the whole store and print what it holds."""
    with json_output(json_file) as output, _opened(folder) as store:
        info = store.info()
        output.update(asdict(info))
        search = info.index
        if info.lists:
            search += f", {info.probes} of {info.lists} lists read per search, recall@10 {info.recall:.1%}"
        console.print(
            f"{info.documents} documents, {info.chunks} passages, {info.bytes_on_disk / 2**20:.1f} MiB"
        )
        console.print(
            f"embedding model {printable(info.embedding_model)}, dimension {info.dimension or 'not known yet'}"
        )
        console.print(f"search by meaning: {search}; by words: BM25")
        console.print(f"format {info.format}; every checksum is right")


def run_list(folder: Path, json_file: Path | None) -> None:
    """Print the documents with their numbers of passages."""
    with json_output(json_file) as output, _opened(folder) as store:
        passages = store.count_by_source()
        output["documents"] = [{"source": source, "chunks": count} for source, count in passages.items()]
        for source, count in passages.items():
            console.print(f"{count:>8} passages  {shown_path(source)}", soft_wrap=True)


def run_remove(folder: Path, sources: Sequence[Path], json_file: Path | None) -> None:
    """Remove documents, or all documents below folders, from the store; the files stay."""
    with json_output(json_file) as output, _opened(folder, write=True) as store:
        wanted = [source.resolve() for source in sources]
        gone = [one for one in store.sources if any(Path(one).is_relative_to(path) for path in wanted)]
        if not gone:
            raise DocumentError(
                f"the store {folder} holds no document {' or '.join(map(str, sources))}; "
                f"`llma-rag store list {folder}` shows what it holds"
            )
        removed = store.remove_sources(gone)
        output.update(documents=gone, passages=removed)
        console.print(
            f"{len(gone)} documents with {removed} passages removed; {len(store)} passages are left"
        )


def _opened(folder: Path, *, write: bool = False) -> DocumentStore:
    embedder = embedder_named(DocumentStore.embedding_model(folder))  # loaded only for searching
    return DocumentStore.open(folder, embedder, write=write)
