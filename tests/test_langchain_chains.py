"""Chains, agents and stores of LangChain with our pieces in them."""

from __future__ import annotations

import pytest
from langchain.agents import create_agent
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from llma_rag.engine import Engine
from llma_rag.langchain import (
    LLMA,
    AnswerMemory,
    ChatLLMA,
    DocumentRetriever,
    FaissVectorStore,
    ReferenceMiddleware,
    conversation_references,
    create_reference_documents_chain,
    earlier_answers,
    remember_answers,
    with_references,
)
from llma_rag.retrieval import DocumentStore, index_documents
from tests.letters import LetterEmbedder, chunk
from tests.scripted_engine import real_template, scripted_engine
from tests.test_langchain_chat import CALLS, collected, joined
from tests.test_langchain_standard import LetterEmbeddings
from tests.tiny import tiny_model, tiny_tokenizer

PROMPT = ChatPromptTemplate.from_messages([("system", "Use this:\n{context}"), ("human", "{input}")])
DOCUMENTS = [Document("The museum opens at nine."), Document("Groups pay at the desk.")]


@pytest.fixture(scope="module")
def engine():
    tokenizer = tiny_tokenizer()
    made = Engine(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, name="tiny")
    made.eos_ids = frozenset()
    return made


@pytest.fixture
def chat(engine):
    return ChatLLMA(model="tiny", engine=engine, max_tokens=40)


@pytest.fixture
def seen(engine, monkeypatch):
    """The references of each request that reaches the engine."""
    requests = []
    request = type(engine)._request

    def recorded(self, prompt, options):
        requests.append([one.text for one in options["references"]])
        return request(self, prompt, options)

    monkeypatch.setattr(Engine, "_request", recorded)
    return requests


TEXTS = [document.page_content for document in DOCUMENTS]
VALUES = {"context": DOCUMENTS, "input": "When?"}


async def test_the_documents_chain_answers_as_langchains_own_and_hands_over_its_documents(chat, seen):
    expected = create_stuff_documents_chain(chat, PROMPT).invoke(VALUES)
    chain = create_reference_documents_chain(chat, PROMPT)
    assert chain.invoke(VALUES) == expected
    assert "".join(chain.stream(VALUES)) == await chain.ainvoke(VALUES) == expected
    assert "".join(await collected(chain.astream(VALUES))) == expected
    assert seen == [[], TEXTS, TEXTS, TEXTS, TEXTS]


def test_each_item_of_a_batch_hands_over_its_own_documents(chat, seen):
    chain = create_reference_documents_chain(chat, PROMPT)
    chain.batch([{"context": [document], "input": "When?"} for document in DOCUMENTS])
    assert sorted(seen) == sorted([[text] for text in TEXTS])


def test_the_documents_chain_streams_piece_by_piece(chat):
    assert len(list(create_reference_documents_chain(chat, PROMPT).stream(VALUES))) > 3


def test_the_documents_chain_takes_the_options_of_langchains_own(chat, seen):
    options = {
        "document_prompt": PromptTemplate.from_template("{page_content} ({source})"),
        "document_separator": " | ",
        "document_variable_name": "papers",
        "output_parser": StrOutputParser(),
    }
    prompt = ChatPromptTemplate.from_template("{papers}\n{input}")
    papers = [Document("a", metadata={"source": "x"}), Document("b", metadata={"source": "y"})]
    values = {"papers": papers, "input": "?"}
    chain = create_reference_documents_chain(chat, prompt, **options)
    assert chain.invoke(values) == create_stuff_documents_chain(chat, prompt, **options).invoke(values)
    assert seen[0] == ["a", "b"]
    with pytest.raises(ValueError, match="the prompt must have the variable 'context'"):
        create_reference_documents_chain(chat, prompt)


async def test_a_retrieval_chain_works_with_it(chat, seen):
    store = FaissVectorStore.from_texts(TEXTS, LetterEmbeddings())
    chain = create_retrieval_chain(store.as_retriever(), create_reference_documents_chain(chat, PROMPT))
    found = chain.invoke({"input": "museum"})
    assert sorted(seen[0]) == sorted(TEXTS)
    assert found["answer"] == (await chain.ainvoke({"input": "museum"}))["answer"]
    assert joined(chain.stream({"input": "museum"}))["answer"] == found["answer"]


def test_the_completion_model_works_in_it_too(engine, seen):
    llm = LLMA(model="tiny", engine=engine, max_tokens=20)
    prompt = PromptTemplate.from_template("{context}\n{input}")
    assert create_reference_documents_chain(llm, prompt).invoke(VALUES)
    assert seen == [TEXTS]


# -- earlier answers and the conversation ---------------------------------------------------------------


def test_earlier_answers_are_references_for_similar_questions(chat, seen):
    memory = AnswerMemory(LetterEmbedder())
    chain = create_reference_documents_chain(chat, PROMPT, more_references=earlier_answers(memory))
    remembering = remember_answers(chain, memory)
    first = remembering.invoke({"context": DOCUMENTS, "input": "opens when"})
    assert memory.nearest("opens when")[0].text == first
    assert "".join(remembering.stream({"context": DOCUMENTS, "input": "when opens"}))
    assert seen == [TEXTS, [*TEXTS, first]]
    assert len(memory) == 2


async def test_answers_are_remembered_whatever_their_form(chat):
    memory = AnswerMemory(LetterEmbedder())
    said = await remember_answers(chat, memory).ainvoke("aaa")
    assert type(said) is AIMessage
    assert memory.nearest("aaa")[0].text == said.content
    pieces = await collected(remember_answers(chat, memory).astream("bbb"))
    assert memory.nearest("bbb")[0].text == joined(pieces).content
    mapped = RunnableLambda(lambda values: {"answer": f"to {values['input']}", "more": 1})
    assert remember_answers(mapped, memory).invoke({"input": "ccc"})["more"] == 1
    assert memory.nearest("ccc")[0].text == "to ccc"
    broken = RunnableLambda(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remember_answers(broken, memory).invoke("ddd")
    assert len(memory) == 3
    state = RunnableLambda(lambda values: {"messages": [AIMessage("to " + values["messages"][0].text)]})
    remember_answers(state, memory, question_key="messages", answer_key="messages").invoke(
        {"messages": [HumanMessage("iii")]}
    )
    assert memory.nearest("iii")[0].text == "to iii"
    remember_answers(chat, memory).invoke([HumanMessage("eee"), AIMessage("no"), HumanMessage("fff")])
    assert memory.nearest("fff")
    with_steps = RunnableLambda(lambda question: question) | remember_answers(chat, memory)
    assert joined(with_steps.stream("ggg")).content == memory.nearest("ggg")[0].text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"answer_key": "text"}, "must have an answer under 'text', it has answer, more; say answer_key"),
        ({"question_key": "q"}, "must have a question under 'q', it has input; say question_key"),
    ],
)
def test_a_wrong_key_is_an_error(keys, message):
    memory = AnswerMemory(LetterEmbedder())
    chain = RunnableLambda(lambda values: {"answer": "to it", "more": 1})
    remembering = remember_answers(chain, memory, **keys)
    with pytest.raises(ValueError, match=message):
        remembering.invoke({"input": "ccc"})
    with pytest.raises(ValueError, match=message):
        list(remembering.stream({"input": "ccc"}))
    assert len(memory) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": "?"}, "must have documents under 'context', it has input"),
        ({"input": "?", "context": "text"}, "'context' must be a list of LangChain documents"),
        ({"input": "?", "context": None}, "'context' must be a list of LangChain documents"),
        ({"input": "?", "context": ["text"]}, "'context' must be a list of LangChain documents"),
    ],
)
def test_a_documents_chain_without_documents_is_an_error(chat, values, message):
    with pytest.raises((TypeError, ValueError), match=message):
        create_reference_documents_chain(chat, PROMPT).invoke(values)


def test_documents_may_come_from_an_iterator(chat, seen):
    chain = create_reference_documents_chain(chat, PROMPT)
    expected = chain.invoke(VALUES)
    assert chain.invoke({**VALUES, "context": iter(DOCUMENTS)}) == expected
    assert seen == [TEXTS, TEXTS]


def test_references_that_are_bound_already_stay(chat, seen):
    bound = chat.bind(references=["own"])
    create_reference_documents_chain(bound, PROMPT).invoke(VALUES)
    with_references(bound, PROMPT, lambda _: ["found"]).invoke({**VALUES, "context": "?"})
    assert seen == [[*TEXTS, "own"], ["found", "own"]]


async def test_a_retriever_takes_the_number_by_call():
    store = DocumentStore(LetterEmbedder())
    store.add([chunk(text) for text in ("aaa", "aab", "abb")])
    retriever = DocumentRetriever(store=store)
    assert len(retriever.invoke("aaa", k=1)) == len(await retriever.ainvoke("aaa", k=1)) == 1


def test_the_conversation_is_a_reference_where_the_prompt_leaves_it_out(chat, seen):
    history = [HumanMessage("Hi"), AIMessage("First."), HumanMessage("And?"), AIMessage("Second.")]
    prompt = ChatPromptTemplate.from_template("{input}")
    chain = with_references(chat, prompt, conversation_references())
    assert chain.invoke({"chat_history": history, "input": "So?"}).content
    chain.invoke({"input": "So?"})
    assert seen == [["Second.", "First."], []]


# -- agents ---------------------------------------------------------------------------------------------


@pytest.fixture
def retriever():
    return FaissVectorStore.from_texts(TEXTS, LetterEmbeddings()).as_retriever(search_kwargs={"k": 1})


def last(state):
    return state["messages"][-1]


async def test_an_agents_question_brings_documents_into_prompt_and_references(engine, retriever, seen):
    chat = ChatLLMA(model="tiny", engine=engine, max_tokens=20)
    agent = create_agent(
        chat, tools=[], system_prompt="Be brief.", middleware=[ReferenceMiddleware(retriever)],
        checkpointer=InMemorySaver(),
    )  # fmt: skip
    asked = {"messages": [HumanMessage("museum opens nine")]}
    said = [
        last(agent.invoke(asked, {"configurable": {"thread_id": "1"}})),
        last(await agent.ainvoke(asked, {"configurable": {"thread_id": "2"}})),
    ]
    assert said[0].content == said[1].content
    assert seen == [[TEXTS[0]], [TEXTS[0]]]
    streamed = list(agent.stream(asked, {"configurable": {"thread_id": "3"}}, stream_mode="messages"))
    assert (
        "".join(chunk.content for chunk, _ in streamed if chunk.type == "AIMessageChunk") == said[0].content
    )
    follow_up = {"messages": [HumanMessage("groups pay desk")]}
    assert len(agent.invoke(follow_up, {"configurable": {"thread_id": "1"}})["messages"]) == 4
    assert seen[-1] == [TEXTS[1]]


def test_documents_may_be_references_only(engine, retriever, seen):
    chat = ChatLLMA(model="tiny", engine=engine, max_tokens=5)
    shown, hidden = (
        create_agent(chat, tools=[], middleware=[ReferenceMiddleware(retriever, show=show)])
        for show in (True, False)
    )
    asked = {"messages": [HumanMessage("museum")]}
    tokens = [last(agent.invoke(asked)).usage_metadata["input_tokens"] for agent in (shown, hidden)]
    assert tokens[0] > tokens[1]
    assert seen == [[TEXTS[0]], [TEXTS[0]]]


@pytest.mark.parametrize("family", ["qwen3", "llama3_1"])
async def test_an_agent_with_a_retriever_tool_answers_from_its_artifact(family, retriever, monkeypatch):
    @tool(response_format="content_and_artifact")
    def look_up(query: str) -> tuple[str, list[Document]]:
        """Find documents."""
        documents = retriever.invoke(query)
        return "found something", documents

    def reply(prompt):
        asked = prompt.rindex("Ask about")
        return (
            TEXTS[0] if "found something" in prompt[asked:] else CALLS[family]("look_up", {"query": "museum"})
        )

    engine = scripted_engine(reply, real_template(family))
    agent = create_agent(ChatLLMA(model="x", engine=engine), tools=[look_up], checkpointer=InMemorySaver())
    for thread in ("1", "1", "2"):
        config = {"configurable": {"thread_id": thread}}
        state = await agent.ainvoke({"messages": [HumanMessage("Ask about the museum")]}, config)
        answer = last(state)
        assert answer.content == TEXTS[0]
        (span,) = answer.response_metadata["copied_spans"]
        assert span["end"] == len(TEXTS[0])


# -- the vector store -----------------------------------------------------------------------------------


def test_documents_come_back_as_they_went_in(tmp_path):
    documents = [
        Document("aaa", metadata={"source": "a.pdf", "page": 3, "start": "x", "tags": ["t"]}, id="a"),
        Document("bbb", metadata={"source": "b.pdf", "page": "iv"}),
        Document("ccc"),
    ]
    with_folder = FaissVectorStore(LetterEmbeddings(), tmp_path / "s")
    ids = with_folder.add_documents(documents)
    assert ids[0] == "a"
    found = with_folder.get_by_ids(ids)
    assert [(one.page_content, one.metadata) for one in found] == [
        (one.page_content, one.metadata) for one in documents
    ]
    with_folder.close()
    reader = FaissVectorStore.load_local(tmp_path / "s", LetterEmbeddings())
    assert reader.similarity_search("aaa", k=1, filter={"source": "a.pdf", "page": {"$gte": 3}})[0].id == "a"
    assert reader.similarity_search("x", k=5, filter={"page": "iv"})[0].page_content == "bbb"
    assert reader.similarity_search("x", k=5, filter={"start": "x"})[0].id == "a"
    assert len(reader.similarity_search("x", k=5, filter={"source": {"$exists": False}})) == 1


def test_scores_rise_with_similarity():
    store = FaissVectorStore.from_texts(["aaa", "aab", "zzz"], LetterEmbeddings())
    found = store.similarity_search_with_score("aaa", k=3)
    assert [round(score, 2) for _, score in found] == sorted(
        (round(score, 2) for _, score in found), reverse=True
    )
    assert found[0][1] == pytest.approx(1.0)
    relevance = store.similarity_search_with_relevance_scores("aaa", k=3)
    assert all(0 <= score <= 1 for _, score in relevance)
    threshold = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99}
    )
    assert [one.page_content for one in threshold.invoke("aaa")] == ["aaa"]


def test_every_search_takes_filters_and_unknown_arguments_are_errors():
    store = FaissVectorStore.from_texts(["aaa", "aab"], LetterEmbeddings(), [{"n": 1}, {"n": 2}])
    vector = LetterEmbeddings().embed_query("aaa")
    searches = [
        lambda **kwargs: store.similarity_search("aaa", **kwargs),
        lambda **kwargs: store.similarity_search("aaa", mode="hybrid", **kwargs),
        lambda **kwargs: [one for one, _ in store.similarity_search_with_score("aaa", **kwargs)],
        lambda **kwargs: store.similarity_search_by_vector(vector, **kwargs),
        lambda **kwargs: store.max_marginal_relevance_search("aaa", **kwargs),
        lambda **kwargs: store.max_marginal_relevance_search_by_vector(vector, **kwargs),
    ]
    for search in searches:
        assert [one.page_content for one in search(filter={"n": 2})] == ["aab"]
        with pytest.raises(TypeError, match="unknown arguments: filters"):
            search(filters={"n": 2})
    hybrid = store.as_retriever(search_kwargs={"mode": "words", "k": 1})
    assert [one.page_content for one in hybrid.invoke("aab")] == ["aab"]


def test_a_store_of_indexed_files_is_a_vector_store(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Hours\n\nThe museum opens at nine.\n")
    with DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True) as store:
        index_documents(store, tmp_path / "docs")
    store = FaissVectorStore.load_local(tmp_path / "s", LetterEmbeddings())
    (found,) = store.similarity_search("museum", filter={"source": str(tmp_path / "docs" / "a.md")})
    assert found.metadata["headings"] == ["Hours"]
    assert found.metadata["start"] == 0


def test_saving_and_deleting_all(tmp_path):
    store = FaissVectorStore.from_texts(["aaa", "bbb"], LetterEmbeddings())
    store.save_local(tmp_path / "s")
    assert store.delete()
    assert len(store) == 0
    again = FaissVectorStore.load_local(tmp_path / "s", LetterEmbeddings(), read_only=False)
    assert again.add_texts(["ccc"], ids=["c"]) == ["c"]
    assert len(again) == 3
    again.close()


def test_a_retriever_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="search_kwargs"):
        DocumentRetriever(store=DocumentStore(LetterEmbedder()), search_kwargs={})
