"""A LlamaIndex chat engine that streams; each answer may copy from what was retrieved for its question.

Run it with `python examples/llamaindex_chat_engine.py`. It asks two questions, the second one about the first.
"""

from importlib.resources import files

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager

from llma_rag.llamaindex import (
    LLMA,
    FiguresHandler,
    ReferencePostprocessor,
    SentenceTransformerEmbedding,
    copied_from_sources,
)

figures = FiguresHandler()
Settings.callback_manager = CallbackManager([figures])
Settings.llm = LLMA(model="smollm2-135m", max_tokens=80)
Settings.embed_model = SentenceTransformerEmbedding()
Settings.tokenizer = Settings.llm.tokenizer_fn
Settings.chunk_size, Settings.chunk_overlap = 160, 20

documents = SimpleDirectoryReader(str(files("llma_rag") / "demo" / "documents")).load_data()
index = VectorStoreIndex.from_documents(documents)
chat_engine = index.as_chat_engine(
    chat_mode="condense_plus_context", similarity_top_k=2, node_postprocessors=[ReferencePostprocessor()]
)

for question in ("What does error code E4 on the Morvello B2 mean?", "And what should I do about it?"):
    print(f"\n> {question}")
    response = chat_engine.stream_chat(question)
    for text in response.response_gen:
        print(text, end="", flush=True)
    print("\n")
    for number, source in enumerate(response.source_nodes, start=1):
        print(f"[{number}] {source.metadata['file_name']}, similarity {source.score:.2f}")
    for span in copied_from_sources(response):
        print(f"copied from [{span.reference_index + 1}]: {str(response)[span.start : span.end]!r}")
    call = figures.calls[-1]
    print(f"{call['usage']['completion_tokens']} tokens in {call['forward_passes']} forward passes")
