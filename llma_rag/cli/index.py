"""`llma-rag index`: documents into a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llma_rag.cli.printing import console, json_output, progress_bar, quiet_libraries, status_console
from llma_rag.errors import DocumentError
from llma_rag.retrieval import Chunk, DocumentStore, default_embedder, read_documents, split_documents
from llma_rag.retrieval.embedding import SentenceTransformerEmbedder, Vectors


def run_index(paths: Sequence[Path], store_folder: Path, json_file: Path | None) -> None:
    """Read, split, embed and save; what the store holds of other documents stays."""
    with json_output(json_file) as output:
        documents = read_documents(paths)
        with DocumentStore.locked(store_folder):
            embedder = quiet_embedder()
            store = (
                DocumentStore.open(store_folder, embedder)
                if DocumentStore.exists(store_folder)
                else DocumentStore(embedder)
            )
            chunks = split_documents(documents, embedder.count_tokens)
            if not chunks:
                raise DocumentError(f"the {len(documents)} documents hold no text")
            vectors = embed_with_progress(embedder, chunks)
            replaced = store.remove_sources([document.source for document in documents])
            store.add(chunks, vectors)
            store.save(store_folder)
        output.update(
            documents=len(documents),
            passages=len(chunks),
            replaced_passages=replaced,
            total_passages=len(store),
        )
        console.print(
            f"{len(documents)} documents, {len(chunks)} passages indexed ({replaced} replaced); "
            f"the store {store_folder} holds {len(store)} passages of {len(store.sources)} documents"
        )


def quiet_embedder() -> SentenceTransformerEmbedder:
    """Return the default embedder, loaded, telling on stderr that it loads."""
    quiet_libraries()
    with status_console.status("Loading the embedding model"):
        embedder = default_embedder()
        _ = embedder.dimension
    return embedder


def embed_with_progress(embedder: SentenceTransformerEmbedder, chunks: Sequence[Chunk]) -> Vectors:
    """Return the passages' vectors, with a bar while they are made."""
    batches = []
    with progress_bar() as bar:
        task = bar.add_task("Embedding passages", total=len(chunks))
        for vectors in embedder.embed_batches([chunk.text for chunk in chunks]):
            batches.append(vectors)
            bar.advance(task, len(vectors))
    return np.concatenate(batches)
