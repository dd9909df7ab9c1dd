"""The chatbot below every surface: follow-ups, refusal, sources, prompts that only grow, and what is kept."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.conversation import (
    Chatbot,
    ChatSettings,
    Conversation,
    ConversationStore,
    Source,
    Turn,
    standalone_question,
)
from llma_rag.conversation.chatbot import REFUSAL
from llma_rag.conversation.layout import chat_messages
from llma_rag.errors import ContextLengthError, StoreError
from llma_rag.retrieval import Chunk, DocumentStore
from tests.letters import LetterEmbedder
from tests.scripted_engine import real_template, scripted_engine

PASSAGES = [
    "The northern pier is closed from November to March.",
    "Tickets for the ferry are sold on board, in cash only.",
    "The museum of clocks opens at nine on weekdays.",
]


@pytest.fixture
def store():
    made = DocumentStore(LetterEmbedder())
    made.add([Chunk(text, f"{number}.txt", 0, len(text)) for number, text in enumerate(PASSAGES)])
    yield made
    made.close()


def turn(question, answer="Yes.", sources=()):
    return Turn(question, question, answer, sources=tuple(sources))


def source(number, text="text"):
    return Source(number, f"id{number}", text, f"{number}.txt", 0, len(text))


def test_an_answer_comes_with_its_sources_and_copied_words(store):
    bot = Chatbot(scripted_engine(f"It says: {PASSAGES[0]}"), store, ChatSettings(min_similarity=0.1))
    conversation = Conversation("c")
    answered = bot.ask(conversation, "When is the northern pier closed?")
    assert answered.basis == "documents"
    assert PASSAGES[0] in [one.text for one in answered.sources]
    (span,) = answered.spans
    assert answered.answer[span["start"] : span["end"]].strip() == PASSAGES[0]
    named = next(one for one in answered.sources if one.number == span["number"])
    assert named.text[span["source_start"] : span["source_end"]] == PASSAGES[0]
    assert conversation.turns == [answered]
    assert answered.figures["forward_passes"] < answered.figures["completion_tokens"]


def test_only_passages_that_are_similar_enough_are_shown(store):
    engine = scripted_engine("Yes.")
    question = "When is the northern pier closed?"
    found = {hit.text: hit.similarity for hit in store.search(question, 3)}
    floor = sorted(found.values())[1]
    sources = (
        Chatbot(engine, store, ChatSettings(min_similarity=floor)).ask(Conversation("c"), question).sources
    )
    assert {one.text for one in sources} == {
        text for text, similarity in found.items() if similarity >= floor
    }
    assert len(sources) == 2


def test_reasoning_is_no_part_of_the_answer(store):
    engine = scripted_engine(f"<think>\nLet me see.\n</think>\n\n{PASSAGES[0]}", real_template("qwen3"))
    answered = Chatbot(engine, store, ChatSettings(min_similarity=0)).ask(Conversation("c"), "When?")
    assert answered.answer == PASSAGES[0]
    assert (answered.spans[0]["start"], answered.spans[0]["end"]) == (0, len(PASSAGES[0]))


def test_instructions_are_added_to_the_chatbots_own(store):
    bot = Chatbot(scripted_engine("Yes."), store, ChatSettings(min_similarity=0))
    system = bot.prepare(Conversation("c"), "When?", "Be brief.").messages[0]["content"]
    assert system.startswith("You answer questions")
    assert system.endswith("\n\nBe brief.")


def test_what_the_documents_do_not_answer_is_refused_or_marked(store):
    engine = scripted_engine("I think so.")
    strict = Chatbot(engine, store, ChatSettings(min_similarity=1.1))
    refused = strict.ask(Conversation("c"), "Who won?")
    assert (refused.answer, refused.basis, refused.sources) == (REFUSAL, "refusal", ())
    assert engine.runner.prompts == []
    free = Chatbot(engine, store, ChatSettings(mode="chat", min_similarity=1.1))
    answered = free.ask(Conversation("c"), "Who won?")
    assert (answered.answer, answered.basis) == ("(Not from the documents.) I think so.", "model")


@pytest.mark.parametrize(
    ("question", "stands_alone"),
    [
        ("When does the ferry leave the harbour?", True),
        ("And on Sundays?", False),
        ("When does it come back from there?", False),
        ("Why?", False),
        ("Who wrote the guide to the museum?", True),
    ],
)
def test_follow_up_questions_are_looked_up_behind_what_they_follow(question, stands_alone):
    before = [turn("Where is the pier?")]
    expected = question if stands_alone else f"Where is the pier? {question}"
    assert standalone_question(question, before) == expected
    assert standalone_question(question, []) == question


def test_a_long_chain_of_follow_ups_is_looked_up_behind_its_beginning_only():
    before = [turn("Where is the pier?")]
    for follow_up in ("And the museum?", "Why is it there?"):
        query = standalone_question(follow_up, before)
        assert query == f"Where is the pier? {follow_up}"
        before.append(Turn(follow_up, query, "Yes."))


def test_the_model_may_rewrite_a_follow_up(store):
    bot = Chatbot(
        scripted_engine("Is the pier open on Sundays?\nmore"),
        store,
        ChatSettings(condensing="model", min_similarity=0),
    )
    conversation = Conversation("c", [turn("When is the pier open?")])
    assert bot.prepare(conversation, "And on Sundays?").query == "Is the pier open on Sundays?"
    off = Chatbot(bot.engine, store, ChatSettings(condensing="off"))
    assert off.prepare(conversation, "And on Sundays?").query == "And on Sundays?"


def test_a_passage_keeps_its_number_and_is_shown_once(store):
    bot = Chatbot(scripted_engine("Yes."), store, ChatSettings(min_similarity=0, passages=2))
    conversation = Conversation("c")
    first = bot.ask(conversation, "When is the northern pier closed?")
    again = bot.prepare(conversation, "When is the northern pier closed?")
    assert [one.number for one in again.sources] == [one.number for one in first.sources] == [1, 2]
    prompt = "\n".join(message["content"] for message in again.messages)
    assert all(prompt.count(one.text) == 1 for one in first.sources)
    assert "See also [1], [2] above." in prompt


@given(st.lists(st.tuples(st.text("ab ", max_size=20), st.lists(st.integers(1, 5), max_size=3)), max_size=6))
def test_while_it_fits_each_prompt_begins_with_the_one_before(turns):
    conversation = Conversation("c")
    before = []
    for question, numbers in turns:
        sources = [source(number) for number in dict.fromkeys(numbers)]
        messages, left_out = chat_messages(conversation, question, sources, 10**9, len)
        assert left_out == 0
        assert messages[: len(before)] == before
        before = messages
        conversation.turns.append(turn(question, "answer", sources))


def test_a_prompt_that_outgrows_its_budget_leaves_out_the_oldest_turns_several_at_once():
    conversation = Conversation("c", [turn(f"question {number}", "x" * 50) for number in range(9)])

    def count(messages):
        return sum(len(message["content"]) for message in messages)

    messages, left_out = chat_messages(conversation, "now?", [source(1)], 700, count)
    assert count(messages) < 500
    assert left_out > 2
    assert "question 8" in messages[-3]["content"]
    assert conversation.first_shown == 0  # until the turn is finished


def test_passages_that_do_not_fit_are_dropped_and_a_question_that_does_not_is_an_error(store):
    engine = scripted_engine("Yes.")
    room = engine.runner.context_length
    bot = Chatbot(engine, store, ChatSettings(min_similarity=0, max_tokens=room))
    per_word = engine.count_tokens("why " * 1000) / 1000
    long = "why " * int(
        (room / 2 - 220) / per_word
    )  # so that half of the context has no room for all passages
    assert 0 < len(bot.prepare(Conversation("c"), long).sources) < 3
    with pytest.raises(
        ContextLengthError, match=rf"a prompt of \d+ tokens, of the context's {room} a prompt may"
    ):
        bot.prepare(Conversation("c"), "why " * room)
    with pytest.raises(ValueError, match="the question is empty"):
        bot.prepare(Conversation("c"), "  ")


def test_a_long_history_is_cut_with_few_counts_and_its_end_stays():
    counts = 0

    def count(messages):
        nonlocal counts
        counts += 1
        return sum(len(message["content"]) for message in messages)

    conversation = Conversation("c", [turn(f"question {number}", "x" * 100) for number in range(5000)])
    messages, left_out = chat_messages(conversation, "now?", [], 10_000, count)
    assert counts < 20
    assert left_out > 4900
    assert "question 4999" in messages[-3]["content"]
    assert 3000 < count(messages) <= 10_000


def test_an_answer_that_may_be_long_does_not_make_the_chatbot_forget(store):
    engine = scripted_engine("Yes.")
    settings = ChatSettings(min_similarity=0, max_tokens=engine.runner.context_length)
    conversation = Conversation("c", [turn("When is the northern pier closed?")])
    assert Chatbot(engine, store, settings).prepare(conversation, "And why?").left_out == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "free"}, "mode must be one of query, chat"),
        ({"condensing": "always"}, "condensing must be one of rule, model, off"),
        ({"passages": 0}, "passages must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        ChatSettings(**settings)


@pytest.mark.parametrize("on_disk", [True, False])
def test_conversations_come_back_as_they_were(tmp_path, on_disk):
    path = tmp_path / "conversations.db" if on_disk else None
    kept = ConversationStore(path)
    conversation = kept.begin()
    for number in range(3):
        conversation.turns.append(
            Turn(
                f"q{number}",
                "q",
                "a\n€",
                sources=(source(1),),
                spans=({"start": 0, "end": 1, "number": 1},),
                figures={"tokens": 3},
            )
        )
        conversation.first_shown = number
        kept.add_turn(conversation)
    other = kept.begin("A title", about="those")
    if on_disk:
        kept.close()
        kept = ConversationStore(path)
    assert kept.get(conversation.id) == conversation
    assert {(one.title, one.turns) for one in kept.list()} == {("q0", 3), ("A title", 0)}
    assert [one.id for one in kept.list("those")] == [other.id]
    assert kept.get(other.id, "these") is None
    assert not kept.delete(other.id, "these")
    assert kept.get(other.id, "those") == other
    assert kept.delete(other.id, "those")
    assert not kept.delete(other.id)
    assert kept.get(other.id) is None
    assert [one.id for one in kept.list()] == [conversation.id]
    kept.close()


def test_a_turn_that_cannot_be_kept_leaves_nothing_behind(tmp_path):
    kept = ConversationStore(tmp_path / "c.db")
    conversation = kept.begin()
    conversation.turns.append(turn("one"))
    kept.add_turn(conversation)
    with pytest.raises(StoreError, match="cannot be read or written"):
        kept.add_turn(Conversation("never begun", [turn("one")]))
    assert kept.get(conversation.id).turns == conversation.turns
    assert kept.get("never begun") is None
    kept.close()


def test_turns_of_two_programs_stand_one_behind_the_other(tmp_path):
    with ConversationStore(tmp_path / "c.db") as one, ConversationStore(tmp_path / "c.db") as other:
        here = one.begin()
        there = other.get(here.id)
        here.turns.append(turn("here"))
        there.turns.append(turn("there"))
        one.add_turn(here)
        other.add_turn(there)
        assert [kept.question for kept in one.get(here.id).turns] == ["here", "there"]


def test_a_file_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(StoreError, match="cannot be opened"):
        ConversationStore(tmp_path / "nowhere" / "c.db")


def test_a_file_of_another_kind_is_refused(tmp_path):
    noise, foreign = tmp_path / "noise.db", tmp_path / "foreign.db"
    noise.write_bytes(b"no database at all" * 300)
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    for path in (noise, foreign):
        with pytest.raises(StoreError):
            ConversationStore(path)
