"""Answer a question over your documents and show which words were copied from where.

Run it with `python examples/ask_documents.py [FOLDER] [QUESTION]`; without arguments it asks about the
documents inside the package.
"""

import sys
from importlib.resources import files

from llma_rag import DocumentStore, Engine, default_embedder, index_documents, quoting_prompt

folder = sys.argv[1] if len(sys.argv) > 1 else str(files("llma_rag") / "demo" / "documents")
question = sys.argv[2] if len(sys.argv) > 2 else "When are the quiet hours at Capanna Orsola?"

store = DocumentStore(default_embedder())  # in memory; DocumentStore.open(...) keeps it in a folder
for skipped in index_documents(store, [folder]).skipped:
    print(f"not read: {skipped.path}: {skipped.reason}")
passages = store.search(question, k=2)

engine = Engine.load("smollm2-135m")
prompt = quoting_prompt(question, [passage.text for passage in passages])
with engine.stream(prompt, references=passages, max_tokens=96) as stream:
    for piece in stream:
        print(piece, end="", flush=True)
    answer = stream.result

print(f"\n\n{answer.completion_tokens} tokens in {answer.forward_passes} forward passes")
for span in answer.copied_spans:
    print(
        f"{span.metadata['source']}, character {span.reference_start}: {answer.text[span.start : span.end]!r}"
    )
