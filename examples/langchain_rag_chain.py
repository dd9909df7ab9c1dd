"""A LangChain retrieval chain whose answers copy from the retrieved documents, and show it.

Run it with `python examples/langchain_rag_chain.py [FOLDER] [QUESTION]`; without arguments it asks about the
documents inside the package.
"""

import sys
from importlib.resources import files
from pathlib import Path

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from llma_rag import DocumentStore, default_embedder, index_documents
from llma_rag.langchain import ChatLLMA, DocumentRetriever, create_reference_documents_chain

folder = sys.argv[1] if len(sys.argv) > 1 else str(files("llma_rag") / "demo" / "documents")
question = sys.argv[2] if len(sys.argv) > 2 else "When are the quiet hours at Capanna Orsola?"

store = DocumentStore(default_embedder())
index_documents(store, folder)
retriever = DocumentRetriever(store=store, k=2)

llm = ChatLLMA(model="smollm2-135m", max_tokens=96)
prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "You answer questions by quoting the given text."),
        ("human", "Text:\n{context}\n\nQuestion: {input}"),
    ]
)
answering = create_reference_documents_chain(llm, prompt, output_parser=RunnablePassthrough())
chain = RunnablePassthrough.assign(context=lambda values: retriever.invoke(values["input"])).assign(
    answer=answering
)

result = chain.invoke({"input": question})
answer, figures = result["answer"], result["answer"].response_metadata
print(answer.content, "\n")
for number, document in enumerate(result["context"], start=1):
    place = document.metadata
    print(f"[{number}] {Path(place['source']).name}, characters {place['start']} to {place['end']}")
for span in figures["copied_spans"]:
    print(f"copied from [{span['reference_index'] + 1}]: {answer.content[span['start'] : span['end']]!r}")
print(f"{answer.usage_metadata['output_tokens']} tokens in {figures['forward_passes']} forward passes")
