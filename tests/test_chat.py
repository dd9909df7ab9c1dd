"""The terminal chat: in this process over a scripted model, and in a pseudo-terminal over the demo model."""

from __future__ import annotations

import sys

import pytest

from llma_rag.cli.chat import _Terminal
from llma_rag.conversation import Chatbot, ChatSettings, ConversationStore
from llma_rag.retrieval import DocumentStore
from tests.letters import LetterEmbedder, chunk
from tests.scripted_engine import scripted_engine
from tests.test_cli import run

PIER = "The northern pier is closed from November to March."
ANSWER = f"It says: {PIER}"


@pytest.fixture
def talk(monkeypatch, capsys):
    """Return what reads lines and tells what was printed for them."""
    store = DocumentStore(LetterEmbedder())
    store.add([chunk(PIER, "pier.txt"), chunk("The museum of clocks opens at nine.", "museum.txt")])
    kept = ConversationStore()

    def talk(*lines, resume=False, **settings):
        given = iter(lines)

        def read(_):
            line = next(given, None)
            if line is None:
                raise EOFError
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        bot = Chatbot(scripted_engine(ANSWER), store, ChatSettings(**{"min_similarity": 0.1, **settings}))
        _Terminal(bot, kept, "documents", resume).run()
        return capsys.readouterr().out

    yield talk
    kept.close()
    store.close()


def test_a_question_is_answered_with_its_sources(talk):
    out = talk("When is the northern pier closed?", "/sources 1", "/stats")
    assert ANSWER in out
    assert "[1] pier.txt" in out
    assert out.count(PIER) == 2  # in the answer, and the source in full
    assert "forward passes: " in out


def test_the_last_question_is_answered_again_without_references(talk):
    out = talk("When is the northern pier closed?", "/compare")
    assert "with references: decode" in out
    assert "without: decode" in out
    assert ", identical" in out


def test_what_cannot_be_done_is_told_and_the_talk_goes_on(talk):
    out = talk("/compare", "/sources", "/save", "/what", KeyboardInterrupt(), "/help", "When is it closed?")
    for told in (
        "nothing to compare yet",
        "nothing was asked yet",
        "say where: /save FILE",
        "no command /what",
    ):
        assert told in out
    assert "Ctrl-C stops an answer." in out
    assert ANSWER in out


def test_a_missing_source_is_told_with_those_there_are(talk):
    assert "has no source 9; it has 1, 2" in talk("When is it closed?", "/sources 9")


def test_a_refusal_asks_no_model(talk):
    out = talk("Who won?", "/compare", min_similarity=1)
    assert "The documents do not answer this question." in out
    assert "nothing to compare yet" in out


def test_a_conversation_is_kept_saved_and_resumed(talk, tmp_path):
    path = tmp_path / "talk.md"
    talk("When is the northern pier closed?", f"/save {path}", "/quit", "never asked")
    assert path.read_text().startswith(f"## When is the northern pier closed?\n\n{ANSWER}\n")
    out = talk("/history", resume=True)
    assert out.count("> When is the northern pier closed?") == 2  # at the beginning, and asked for
    assert "never asked" not in out
    assert "> When" not in talk("/new", "/history")


def test_ctrl_c_stops_the_answer_and_not_the_program(talk, monkeypatch):
    from llma_rag.streams import TextStream

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(TextStream, "__next__", interrupted)
        out = talk("When is the northern pier closed?", "/history")
    assert "(Stopped; this turn is not kept.)" in out
    assert "> When" not in out
    assert ANSWER in talk("When is the northern pier closed?")


@pytest.mark.model
def test_a_person_talks_in_a_terminal(capsys, tmp_path):
    import pexpect

    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "pier.txt").write_text(
        f"{PIER} Tickets are sold on board. Dogs travel free of charge on weekdays, and boats leave at seven.\n"
    )
    assert run(capsys, "index", tmp_path / "documents", "--store", tmp_path / "store")[0] == 0
    arguments = ["-m", "llma_rag.cli", "chat", "--store", str(tmp_path / "store"), "--max-tokens", "48"]
    arguments += ["--conversations", str(tmp_path / "conversations.db")]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=120, dimensions=(50, 120))
    child.expect("/help lists commands")
    child.expect("> ")
    child.sendline("When is the northern pier closed?")
    child.expect(r"\[1\].*pier\.txt")
    child.expect("> ")
    child.sendline("/sources 1")
    child.expect("Dogs travel free")
    child.sendline("/compare")
    child.expect("times as fast, identical")
    child.expect("> ")
    child.sendline("Tell me everything about the pier, at length.")
    child.expect("at length.")  # the echo: the answer is under way
    child.sendintr()
    child.expect("Stopped; this turn is not kept")
    child.expect("> ")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
