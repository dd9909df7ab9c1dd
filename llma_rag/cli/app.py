"""The `llma-rag` command and its subcommands."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llma_rag import __version__
from llma_rag.cli.printing import printable, quiet_libraries
from llma_rag.errors import LlmaRagError, ModelError

if TYPE_CHECKING:
    from llma_rag.conversation import ChatSettings

app = typer.Typer(
    name="llma-rag",
    help="RAG answers of a local language model, several times faster, without changing a single token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Option(help="Hub name, local folder, .gguf file, or smollm2-135m (needs no hub)."),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Width = Annotated[
    int | None, typer.Option(help="Positions per verify step, 2 to 64; default: chosen at load.")
]
Candidates = Annotated[
    int | None,
    typer.Option(
        help="Drafts that a verify step checks side by side, 1 to 16; default: chosen at load, 1 on a CPU."
    ),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens per answer.")]
Json = Annotated[
    Path | None, typer.Option("--json", help="Also write what was printed to this file, as data.")
]
Store = Annotated[Path, typer.Option(help="The folder of the document store.")]

StoreFolder = Annotated[Path, typer.Argument(help="The folder of the document store.")]

DEMO_MODEL = "smollm2-135m"
_API_KEY = "LLMA_RAG_API_KEY"


class Search(StrEnum):
    """How passages are found."""

    hybrid = "hybrid"
    vectors = "vectors"
    words = "words"


class ChatMode(StrEnum):
    """What to do where the documents do not answer."""

    query = "query"
    chat = "chat"


class ChatCondensing(StrEnum):
    """How a follow-up question is made to stand alone."""

    rule = "rule"
    model = "model"
    off = "off"


ChatModeOption = Annotated[
    ChatMode, typer.Option(help="Where the documents do not answer: refuse, or answer freely.")
]
CondensingOption = Annotated[
    ChatCondensing, typer.Option(help="How a follow-up question is made to stand alone.")
]
PassagesOption = Annotated[int, typer.Option(min=1, help="Most passages per question.")]
MinSimilarityOption = Annotated[
    float, typer.Option(min=-1, max=1, help="Of a passage to the question, below which it is not relevant.")
]
SearchOption = Annotated[Search, typer.Option(help="How passages are found.")]
ConversationsOption = Annotated[
    Path | None, typer.Option(help="The file that conversations are kept in; default: one of the user's.")
]

store_app = typer.Typer(help="Look into a document store, or take documents out of it.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@app.command()
def demo(
    model: Model = DEMO_MODEL,
    dtype: Dtype = "auto",
    width: Width = None,
    max_tokens: MaxTokens = 96,
    json_file: Json = None,
) -> None:
    """Answer questions over the packaged documents, with and without references."""
    from llma_rag.cli.demo import run_demo

    run_demo(model, dtype, width, max_tokens, json_file)


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(help="Documents, or folders of them.")],
    store: Store,
    embedding_model: Annotated[
        str | None, typer.Option(help="Hub name or local folder; default: all-MiniLM-L6-v2, or the store's.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and follow changes until Ctrl+C.")] = False,
    json_file: Json = None,
) -> None:
    """Read documents into a store: what is new or changed; what has vanished is removed.

    Exit code 1 says that some files could not be read; they are listed with the reason, all others are in.
    """
    from llma_rag.cli.index import run_index

    run_index(paths, store, embedding_model, watch, json_file)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    store: Store,
    model: Model = DEMO_MODEL,
    dtype: Dtype = "auto",
    width: Width = None,
    max_tokens: MaxTokens = 256,
    passages: Annotated[int, typer.Option(min=1, help="Passages to retrieve.")] = 3,
    search: Annotated[Search, typer.Option(help="By meaning and words, or by one of them.")] = Search.hybrid,
    references: Annotated[bool, typer.Option(help="Draft from the retrieved passages.")] = True,
    json_file: Json = None,
) -> None:
    """Answer a question from the documents in a store."""
    from llma_rag.cli.ask import run_ask

    run_ask(question, store, model, dtype, width, max_tokens, passages, search.value, references, json_file)


@app.command()
def chat(
    store: Store,
    model: Model = DEMO_MODEL,
    dtype: Dtype = "auto",
    mode: ChatModeOption = ChatMode.query,
    condensing: CondensingOption = ChatCondensing.rule,
    passages: PassagesOption = 3,
    min_similarity: MinSimilarityOption = 0.3,
    max_tokens: MaxTokens = 256,
    search: SearchOption = Search.hybrid,
    conversations: ConversationsOption = None,
    resume: Annotated[bool, typer.Option(help="Go on with the last conversation about this store.")] = False,
) -> None:
    """Talk about the documents of a store; /help lists commands."""
    from llma_rag.cli.chat import run_chat

    settings = _chat_settings(mode, condensing, passages, min_similarity, search, max_tokens)
    run_chat(store, model, dtype, settings, conversations, resume)


@app.command()
def serve(
    store: Annotated[
        Path | None,
        typer.Option(help="The folder of the document store; a new one is made where there is none."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Serve the packaged documents; nothing is kept.")
    ] = False,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=_API_KEY,
            help="What requests must carry; others see an option in the list of processes, so prefer the variable.",
        ),
    ] = None,
    model: Model = DEMO_MODEL,
    dtype: Dtype = "auto",
    width: Width = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer, if not asked otherwise.")
    ] = 512,
    queue: Annotated[int, typer.Option(min=1, help="Most requests in work; more get status 429.")] = 64,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse parameters that would have no effect.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may use the server; may be repeated.")
    ] = None,
    mode: ChatModeOption = ChatMode.query,
    condensing: CondensingOption = ChatCondensing.rule,
    passages: PassagesOption = 3,
    min_similarity: MinSimilarityOption = 0.3,
    search: SearchOption = Search.hybrid,
    conversations: ConversationsOption = None,
) -> None:
    """Serve OpenAI's API: the model, and a chatbot over the documents of a store."""
    if (store is None) != demo:
        raise typer.BadParameter("give either --store or --demo")
    try:
        from llma_rag.cli.serve import run_serve
        from llma_rag.serving import ServerSettings
    except ImportError as error:
        raise ModelError(
            f"serving needs a library that is missing ({error.name}); `pip install 'llma-rag[serve]'` brings it"
        ) from error

    chat_settings = _chat_settings(mode, condensing, passages, min_similarity, search, max_tokens)
    key = os.environ.get(_API_KEY) if api_key is None else api_key  # an empty one must not open the server
    try:
        settings = ServerSettings(api_key=key, origins=tuple(cors_origin or ()), strict=strict, queue=queue)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run_serve(store, model, dtype, width, host, port, conversations, chat_settings, settings)


@app.command()
def compare(
    data: Annotated[Path, typer.Option(help="JSON lines, each with `query` and `docs`.")],
    model: Model = DEMO_MODEL,
    dtype: Dtype = "auto",
    width: Width = None,
    candidates: Candidates = None,
    max_tokens: MaxTokens = 128,
    limit: Annotated[int | None, typer.Option(min=1, help="Most samples.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Samples to leave out at the beginning.")] = 0,
    max_docs: Annotated[int, typer.Option(min=1, help="Most documents per prompt.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per sample and mode; times are medians.")] = 1,
    baselines: Annotated[
        str, typer.Option(help="Comma-separated: transformers, prompt_lookup; or none.")
    ] = "transformers,prompt_lookup",
    json_file: Json = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with charts and answers (needs the report extra).")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also write the charts as a PNG picture (needs the report extra).")
    ] = None,
) -> None:
    """Measure answers with references against plain decoding and transformers' generate."""
    from llma_rag.cli.compare import run_compare

    run_compare(
        data,
        model,
        dtype,
        width,
        candidates,
        max_tokens,
        limit,
        skip,
        max_docs,
        repeats,
        baselines,
        json_file,
        html,
        png,
    )


@app.command()
def replay(
    data: Annotated[
        Path, typer.Option(help="JSON lines with `docs` and `result.text`, or the output of compare --json.")
    ],
    tokenizer: Annotated[str, typer.Option(help="The model whose tokenizer to use.")] = DEMO_MODEL,
    limit: Annotated[int | None, typer.Option(min=1, help="Most samples.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Samples to leave out at the beginning.")] = 0,
    json_file: Json = None,
) -> None:
    """Measure drafting alone: known answers are forced, no model runs; ours beside other policies."""
    from llma_rag.cli.replay import run_replay

    run_replay(data, tokenizer, skip, limit, json_file)


@app.command()
def doctor(
    model: Model = DEMO_MODEL,
    dtype: Dtype = "auto",
    width: Width = None,
    candidates: Candidates = None,
    json_file: Json = None,
) -> None:
    """Tell what this machine does with a model: device, width, exactness, step costs, memory; and what to change."""
    from llma_rag.cli.doctor import run_doctor

    run_doctor(model, dtype, width, candidates, json_file)


@store_app.command()
def info(folder: StoreFolder, json_file: Json = None) -> None:
    """Check a store and print what it holds."""
    from llma_rag.cli.store import run_info

    run_info(folder, json_file)


@store_app.command("list")
def list_documents(folder: StoreFolder, json_file: Json = None) -> None:
    """Print the documents in a store with their numbers of passages."""
    from llma_rag.cli.store import run_list

    run_list(folder, json_file)


@store_app.command()
def remove(
    folder: StoreFolder,
    sources: Annotated[list[Path], typer.Argument(help="Documents, or folders they were in.")],
    json_file: Json = None,
) -> None:
    """Remove documents from a store; the files stay."""
    from llma_rag.cli.store import run_remove

    run_remove(folder, sources, json_file)


def _chat_settings(
    mode: ChatMode,
    condensing: ChatCondensing,
    passages: int,
    min_similarity: float,
    search: Search,
    max_tokens: int,
) -> ChatSettings:
    from llma_rag.conversation import ChatSettings

    return ChatSettings(
        mode=mode.value,
        passages=passages,
        min_similarity=min_similarity,
        condensing=condensing.value,
        search=search.value,
        max_tokens=max_tokens,
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command("vllm-args")
def vllm_args(
    model: Annotated[str, typer.Option(help="Hub name or local folder, as vLLM takes it.")],
    drafted: Annotated[int, typer.Option(min=1, max=64, help="Most tokens per draft.")] = 8,
) -> None:
    """Print what goes behind `vllm serve`, the model and how it drafts from references.

    vLLM's environment needs this package as well: `pip install --no-deps llma-rag` there.
    """
    from llma_rag.cli.vllm_args import server_arguments

    typer.echo(server_arguments(model, drafted))


def main() -> None:
    """Run the command; an error of ours or of the file system is one line and exit code 2."""
    quiet_libraries()
    try:
        app()
    except (LlmaRagError, OSError) as error:
        typer.echo(printable(f"llma-rag: error: {error}"), err=True)
        sys.exit(2)
