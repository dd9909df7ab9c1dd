"""The same LangChain chain without drafts, with references, and with earlier answers as references: a table.

Run it with `python examples/langchain_compare.py`.
"""

import json
import time
from importlib.resources import files

from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from rich.console import Console
from rich.table import Table

from llma_rag import DocumentStore, default_embedder, index_documents
from llma_rag.langchain import (
    AnswerMemory,
    ChatLLMA,
    DocumentRetriever,
    create_reference_documents_chain,
    earlier_answers,
)

demo = files("llma_rag") / "demo"
questions = [one["question"] for one in json.loads((demo / "questions.json").read_text(encoding="utf-8"))]
embedder = default_embedder()
store = DocumentStore(embedder)
index_documents(store, str(demo / "documents"))
retriever = DocumentRetriever(store=store, k=2)
memory = AnswerMemory(embedder)

llm = ChatLLMA(model="smollm2-135m", max_tokens=64).bind(reuse_prefix=False)
prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "You answer questions by quoting the given text."),
        ("human", "Text:\n{context}\n\nQuestion: {input}"),
    ]
)
message = RunnablePassthrough()
chains = {
    "without": prompt | llm.bind(draft=False),
    "references": create_reference_documents_chain(llm, prompt, output_parser=message),
    "and earlier answers": create_reference_documents_chain(
        llm, prompt, output_parser=message, more_references=earlier_answers(memory)
    ),
}

llm.invoke("Warming up.", max_tokens=2)
table = Table("question", "chain", "tokens", "passes", "decode s", "total s", "same text")
seconds = dict.fromkeys(chains, 0.0)
for question in questions:
    documents = retriever.invoke(question)
    text = "\n\n".join(document.page_content for document in documents)
    answers: dict[str, AIMessage] = {}
    for name, chain in chains.items():
        begin = time.perf_counter()
        answers[name] = chain.invoke({"context": text if name == "without" else documents, "input": question})
        total = time.perf_counter() - begin
        figures = answers[name].response_metadata
        seconds[name] += figures["decode_s"]
        table.add_row(
            question if name == "without" else "",
            name,
            str(answers[name].usage_metadata["output_tokens"]),
            str(figures["forward_passes"]),
            f"{figures['decode_s']:.2f}",
            f"{total:.2f}",
            "yes" if answers[name].content == answers["without"].content else "NO",
        )
        memory.add(question, answers[name].content)

Console(width=120).print(table)
for name, total in seconds.items():
    print(f"{name}: {total:.1f} s of decoding, {seconds['without'] / total:.1f}×")
