"""LangChain with the demo model: a chain of its documentation, earlier answers, and the examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate

from llma_rag.langchain import (
    AnswerMemory,
    ChatLLMA,
    create_reference_documents_chain,
    earlier_answers,
    remember_answers,
)
from llma_rag.retrieval import default_embedder

pytestmark = pytest.mark.model
EXAMPLES = Path(__file__).parents[1] / "examples"


class LastAnswer(BaseCallbackHandler):
    """Keeps the message behind a chain's text."""

    def on_llm_end(self, response, **kwargs):
        self.message = response.generations[0][0].message

    @property
    def passes(self):
        return self.message.response_metadata["forward_passes"]

    @property
    def tokens(self):
        return self.message.usage_metadata["output_tokens"]


def test_a_chain_of_langchains_documentation_takes_fewer_passes_than_tokens(capsys):
    prompt = ChatPromptTemplate.from_messages(
        [("system", "What are everyone's favorite colors:\n\n{context}")]
    )
    model = ChatLLMA(model="smollm2-135m", max_tokens=64)
    chain = create_stuff_documents_chain(model, prompt)
    docs = [
        Document(page_content="Jesse loves red but not yellow"),
        Document(page_content="Jamal loves green but not as much as he loves orange"),
    ]
    answer = LastAnswer()
    assert chain.invoke({"context": docs}, {"callbacks": [answer]})
    with capsys.disabled():
        print(f"\nstuff-documents: {answer.tokens} tokens in {answer.passes} passes")
    assert answer.passes < answer.tokens


def test_an_earlier_answer_lowers_the_passes_of_the_same_and_of_a_reworded_question(capsys):
    memory = AnswerMemory(default_embedder())
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "You answer questions by quoting the given text."),
            ("human", "Text:\n{context}\n\nQuestion: {input}"),
        ]
    )
    model = ChatLLMA(model="smollm2-135m", max_tokens=64)
    chain = create_reference_documents_chain(model, prompt)
    recalling = create_reference_documents_chain(model, prompt, more_references=earlier_answers(memory))
    documents = [
        Document(
            "The grinder must be cleaned every week. Remove the hopper, brush the burrs and run it empty twice."
        ),
        Document(
            "Error E4 means that the boiler is overheating. Switch the machine off and let it cool for an hour."
        ),
    ]
    question, reworded = "What does error E4 mean?", "What is the meaning of error E4?"
    plain: dict[str, LastAnswer] = {}
    for asked in (question, reworded):
        plain[asked] = LastAnswer()
        chain.invoke({"context": documents, "input": asked}, {"callbacks": [plain[asked]]})
    values = {"context": documents, "input": question}
    remember_answers(chain, memory).invoke(values)
    for asked in (question, reworded):
        assert memory.nearest(asked)
        recalled = LastAnswer()
        recalling.invoke({"context": documents, "input": asked}, {"callbacks": [recalled]})
        assert recalled.message.content == plain[asked].message.content
        with capsys.disabled():
            print(
                f"\n{asked} {recalled.tokens} tokens in {plain[asked].passes} passes, with the earlier answer in {recalled.passes}"
            )
        assert recalled.passes < plain[asked].passes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("langchain_rag_chain", ["copied from [1]", "mountain-hut-faq.txt, characters", "forward passes"]),
        ("langchain_agent", ["copied from mountain-hut-faq.txt", "forward passes"]),
        ("langchain_compare", ["and earlier answers", "of decoding"]),
    ],
)
def test_the_example_runs(name, expected):
    command = [sys.executable, EXAMPLES / f"{name}.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
    assert "NO" not in done.stdout
