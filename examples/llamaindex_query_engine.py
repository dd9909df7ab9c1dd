"""A LlamaIndex query engine whose answers copy from the retrieved nodes, and show it.

Run it with `python examples/llamaindex_query_engine.py [FOLDER] [QUESTION]`; without arguments it asks about the
documents inside the package.
"""

import sys
from importlib.resources import files

from llama_index.core import Settings, SimpleDirectoryReader, StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts import ChatPromptTemplate

from llma_rag.llamaindex import (
    LLMA,
    FaissVectorStore,
    FiguresHandler,
    ReferenceSynthesizer,
    SentenceTransformerEmbedding,
    copied_from_sources,
)

folder = sys.argv[1] if len(sys.argv) > 1 else str(files("llma_rag") / "demo" / "documents")
question = (
    sys.argv[2] if len(sys.argv) > 2 else "What happens to deleted documents in Quillstow Server 4.1.0?"
)

figures = FiguresHandler()
Settings.callback_manager = CallbackManager([figures])
Settings.llm = LLMA(model="smollm2-135m", max_tokens=96)
Settings.embed_model = SentenceTransformerEmbedding()
Settings.tokenizer = Settings.llm.tokenizer_fn
Settings.chunk_size, Settings.chunk_overlap = 160, 20

documents = SimpleDirectoryReader(folder).load_data()
store = FaissVectorStore(embed_model=Settings.embed_model)
index = VectorStoreIndex.from_documents(
    documents, storage_context=StorageContext.from_defaults(vector_store=store)
)
prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "You answer questions by quoting the given text."),
        ("user", "Text:\n{context_str}\n\nQuestion: {query_str}"),
    ]
)
query_engine = index.as_query_engine(
    similarity_top_k=2, response_synthesizer=ReferenceSynthesizer(text_qa_template=prompt)
)

response = query_engine.query(question)
print(response, "\n")
for number, source in enumerate(response.source_nodes, start=1):
    print(f"[{number}] {source.metadata['file_name']}, similarity {source.score:.2f}")
for span in copied_from_sources(response):
    print(f"copied from [{span.reference_index + 1}]: {str(response)[span.start : span.end]!r}")
call = figures.calls[-1]
print(f"{call['usage']['completion_tokens']} tokens in {call['forward_passes']} forward passes")
