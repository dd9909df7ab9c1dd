"""`llma-rag chat`: a conversation over a document store in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import platformdirs
from rich.live import Live
from rich.text import Text

from llma_rag.calls import Call
from llma_rag.cli.printing import (
    console,
    copied_style,
    load_engine,
    printable,
    require_writable,
    shown_path,
    status_console,
)
from llma_rag.conversation import (
    Answering,
    Chatbot,
    ChatSettings,
    Conversation,
    ConversationStore,
    Source,
    Turn,
)
from llma_rag.engine import RequestOptions
from llma_rag.errors import DataError, LlmaRagError, StoreError
from llma_rag.files import write_atomically
from llma_rag.provenance import as_references, copied_spans
from llma_rag.retrieval import DocumentStore, embedder_named

_HELP = """\
/sources [N]  the passages of the last answer, or one of them in full
/stats        figures of the last answer
/compare      answer the last question again without references and compare the times
/history      the conversation so far
/save FILE    write the conversation as Markdown
/new          begin a new conversation
/quit         leave; so does the end of the input
Ctrl-C stops an answer."""


def run_chat(
    store_folder: Path,
    model: str,
    dtype: str,
    settings: ChatSettings,
    conversations: Path | None,
    resume: bool,
) -> None:
    """Answer questions until the input ends; conversations are kept in a file."""
    embedder = embedder_named(DocumentStore.embedding_model(store_folder))
    with DocumentStore.open(store_folder, embedder) as store:
        if not len(store):
            raise StoreError(f"the store {store_folder} is empty; index some documents first")
        engine = load_engine(model, dtype, None)
        with ConversationStore(conversations or conversations_file()) as kept:
            _Terminal(Chatbot(engine, store, settings), kept, str(store_folder.resolve()), resume).run()


def conversations_file() -> Path:
    """Return the user's file of conversations."""
    folder = platformdirs.user_data_path("llma_rag")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "conversations.db"


class _Terminal:
    """Reads questions and commands, writes answers."""

    def __init__(self, bot: Chatbot, kept: ConversationStore, about: str, resume: bool) -> None:
        self._bot = bot
        self._kept = kept
        self._about = about
        self._conversation = _last(kept, about) if resume else None
        self._answered: tuple[Answering, Call] | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/sources": self._sources,
            "/stats": self._stats,
            "/compare": self._compare,
            "/history": self._history,
            "/save": self._save,
            "/new": self._new,
            "/help": lambda _: console.print(_HELP),
        }

    def run(self) -> None:
        """Go on until /quit or the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  lines can be edited and called up again
        console.print("Ask about the documents; /help lists commands.")
        if self._conversation is not None:
            self._history("")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                console.print()
                continue
            if line in ("/quit", "/exit"):
                return
            if line:
                self._obey(line)

    def _obey(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        try:
            if not line.startswith("/"):
                self._ask(line)
            elif command in self._commands:
                self._commands[command](argument.strip())
            else:
                console.print(f"There is no command {printable(command)}; /help lists them.")
        except KeyboardInterrupt:
            console.print("\n(Stopped; this turn is not kept.)")
        except (LlmaRagError, ValueError, OSError) as error:
            console.print(printable(f"error: {error}"))

    def _ask(self, question: str) -> None:
        if self._conversation is None:
            self._conversation = self._kept.begin(about=self._about)
        answering = self._bot.prepare(self._conversation, question)
        if answering.left_out:
            console.print(f"(The first {answering.left_out} turns no longer fit and are left out.)")
        call = None
        if answering.basis == "refusal":
            console.print(answering.opening)
        else:
            call = self._bot.call(answering)
            self._show(answering, call)
        turn = self._bot.finish(self._conversation, answering, call)
        self._kept.add_turn(self._conversation)
        self._answered = None if call is None else (answering, call)
        for source in turn.sources:
            console.print(_source_line(source), soft_wrap=True)

    def _show(self, answering: Answering, call: Call) -> None:
        """Show an answer as it comes, copied words in their source's colour, the model's reasoning dimmed."""
        references = as_references([source.text for source in answering.sources])
        numbers = [source.number for source in answering.sources]
        reasoning = ""
        with contextlib.closing(call.pieces()) as pieces:
            if not console.is_terminal:
                for _ in pieces:
                    pass
                console.print(printable(answering.opening + call.content), soft_wrap=True)
                return
            with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as live:
                for piece in pieces:
                    reasoning += piece.reasoning
                    text = answering.opening + call.content
                    shown = Text(printable(text))
                    for span in copied_spans(text, references):
                        shown.stylize(copied_style(numbers[span.reference_index]), span.start, span.end)
                    live.update(Text(printable(reasoning), "dim") + shown)

    def _sources(self, argument: str) -> None:
        turn = self._last_turn()
        if not argument:
            for source in turn.sources:
                console.print(_source_line(source), soft_wrap=True)
            return
        found = [source for source in turn.sources if str(source.number) == argument]
        if not found:
            numbers = ", ".join(str(source.number) for source in turn.sources) or "none"
            raise DataError(f"the last answer has no source {argument}; it has {numbers}")
        console.print(_source_line(found[0]), soft_wrap=True)
        console.print(printable(found[0].text))

    def _stats(self, _: str) -> None:
        for name, value in self._last_turn().figures.items():
            console.print(f"{name.replace('_', ' ')}: {value}")

    def _compare(self, _: str) -> None:
        if self._answered is None:
            raise DataError("nothing to compare yet; ask a question that the documents answer")
        answering, call = self._answered
        drafted = call.answer
        with status_console.status("Answering without references"):
            options = RequestOptions(**{**answering.options, "draft": False})
            plain = self._bot.engine.generate(answering.messages, **options)
        same = "identical" if plain.token_ids == drafted.token_ids else "NOT IDENTICAL"
        for name, answer in (("with references", drafted), ("without", plain)):
            console.print(
                f"{name}: decode {answer.timings.decode_s:.2f} s, {answer.completion_tokens} tokens in "
                f"{answer.forward_passes} passes"
            )
        times = plain.timings.decode_s / max(drafted.timings.decode_s, 1e-9)
        console.print(f"{times:.2f} times as fast, {same}")

    def _history(self, _: str) -> None:
        for turn in self._conversation.turns if self._conversation else []:
            console.print(f"> {printable(turn.question)}")
            console.print(printable(turn.answer))

    def _save(self, argument: str) -> None:
        if not argument:
            raise DataError("say where: /save FILE")
        path = Path(argument).expanduser()
        require_writable(path)
        turns = self._conversation.turns if self._conversation else []
        write_atomically(path, _markdown(turns).encode())
        console.print(printable(f"{len(turns)} turns are in {path}."))

    def _new(self, _: str) -> None:
        self._conversation = self._answered = None
        console.print("A new conversation.")

    def _last_turn(self) -> Turn:
        if self._conversation is None or not self._conversation.turns:
            raise DataError("nothing was asked yet")
        return self._conversation.turns[-1]


def _last(kept: ConversationStore, about: str) -> Conversation | None:
    known = next((one for one in kept.list(about) if one.turns), None)  # others were begun and left
    return kept.get(known.id) if known else None


def _source_line(source: Source) -> Text:
    line = Text("  ")
    line.append(f"[{source.number}]", copied_style(source.number))
    line.append(f" {shown_path(source.source)}")
    if source.page is not None:
        line.append(f", page {source.page}")
    if source.headings:
        line.append(f", {printable(' > '.join(source.headings))}")
    if source.similarity is not None:
        line.append(f", similarity {source.similarity:.2f}")
    return line


def _markdown(turns: list[Turn]) -> str:
    parts = []
    for turn in turns:
        parts.append(f"## {turn.question}\n\n{turn.answer}\n")
        parts += [f"- [{source.number}] {source.source}" for source in turn.sources]
        parts.append("")
    return "\n".join(parts)
