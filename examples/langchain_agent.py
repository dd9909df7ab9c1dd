"""A LangChain agent that gets documents for each question, in its prompt and as references.

Run it with `python examples/langchain_agent.py`; it needs `pip install 'llma-rag[demo,langchain]'`.
"""

from importlib.resources import files
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage

from llma_rag import DocumentStore, default_embedder, index_documents
from llma_rag.langchain import ChatLLMA, DocumentRetriever, ReferenceMiddleware

store = DocumentStore(default_embedder())
index_documents(store, str(files("llma_rag") / "demo" / "documents"))
retriever = DocumentRetriever(store=store, k=2)

agent = create_agent(
    ChatLLMA(model="smollm2-135m", max_tokens=64),
    tools=[],
    system_prompt="You answer questions by quoting the given text.",
    middleware=[ReferenceMiddleware(retriever, heading="Text:")],
)

for question in (
    "When are the quiet hours at Capanna Orsola?",
    "What does error code E4 on the Morvello B2 mean?",
):
    state = agent.invoke({"messages": [HumanMessage(question)]})
    answer = state["messages"][-1]
    figures = answer.response_metadata
    print(f"\n{question}\n{answer.content}")
    for span in figures["copied_spans"]:
        name = Path(span["metadata"]["source"]).name
        print(f"copied from {name}: {answer.content[span['start'] : span['end']]!r}")
    print(f"{answer.usage_metadata['output_tokens']} tokens in {figures['forward_passes']} forward passes")
