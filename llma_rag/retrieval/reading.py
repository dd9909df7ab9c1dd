"""Extracting the text of files: plain text, source code, Markdown, HTML, PDF, Word, PowerPoint, CSV, JSON.

Where a kind of file has headings, the extracted text is Markdown, so that passages know their headings.
The libraries that read the richer kinds come with `pip install 'llma-rag[documents]'`.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import io
import json
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from charset_normalizer import from_bytes

from llma_rag.errors import DocumentError
from llma_rag.retrieval.discovery import as_paths, find_files
from llma_rag.retrieval.documents import Document

MAX_FILE_BYTES = 64 * 2**20
MAX_UNPACKED_BYTES = 512 * 2**20  # of a file that is a zip archive inside
MAX_MARKUP_BYTES = 32 * 2**20  # of the XML in it, which takes twenty times as much memory
MAX_JSON_VALUES = 1_000_000

_TEXT = ".txt .text .log .rst .adoc .org .tex"
_CODE = (
    ".py .pyi .js .mjs .jsx .ts .tsx .java .kt .scala .c .h .cc .cpp .hpp .cs .go .rs .rb .php .pl .swift .m .r "
    ".jl .lua .sh .bash .ps1 .sql .proto .toml .yaml .yml .ini .cfg .css .vue"
)

_READERS = (
    "beautifulsoup4",
    "charset-normalizer",
    "lxml",
    "markdownify",
    "pypdf",
    "python-docx",
    "python-pptx",
)

Extract = Callable[[bytes, str], Iterable[Document]]


def read_documents(paths: str | Path | Iterable[str | Path]) -> list[Document]:
    """Read files, and all documents below folders, in a stable order, each once.

    Raises:
        DocumentError: a path is missing, a folder holds no document, or a file cannot be read.
    """
    paths = as_paths(paths)
    found = find_files(paths, SUFFIXES)
    for skipped in found.skipped:
        raise DocumentError(f"{skipped.path} {skipped.reason}")
    if not found.files:
        raise no_documents(paths)
    return [document for path in found.files for document in extract(load(path), path)]


def no_documents(paths: Iterable[Path]) -> DocumentError:
    """Return the error that says so."""
    names = " and ".join(map(str, paths)) or "nothing"
    return DocumentError(f"{names} holds no document ({' '.join(sorted(SUFFIXES))})")


def load(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        DocumentError: it cannot be read, is too big, or its name is not UTF-8.
    """
    try:
        str(path).encode()
        if not stat.S_ISREG(path.stat().st_mode):
            raise DocumentError(f"{path} is not a regular file; name a file or a folder")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise DocumentError(
                f"{path} has over {MAX_FILE_BYTES} bytes, the most that are read; split it first"
            )
        return content
    except UnicodeEncodeError as error:
        raise DocumentError(f"{path!a} has a name that is not UTF-8; rename it") from error
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror}") from error


def extract(content: bytes, path: Path) -> list[Document]:
    """Return the text of a file's content: one document, or one per page or slide that has text.

    Raises:
        DocumentError: the content is not what the name says, is encrypted, or needs a library that is missing.
    """
    kind = path.suffix.lower()
    try:
        documents = list(_EXTRACTORS[kind](content, str(path)))
    except DocumentError:
        raise
    except ImportError as error:
        raise DocumentError(
            f"{path} needs a library that is missing ({error.name}); `pip install 'llma-rag[documents]'` brings it"
        ) from error
    except Exception as error:  # on a damaged file the libraries raise whatever comes
        reason = " ".join(f"{error}".split())[:200] or type(error).__name__
        raise DocumentError(f"{path} is damaged or not a {kind} file: {reason}") from error
    return [_whole(document) for document in documents if document.text.strip()]


@functools.cache
def reader_versions() -> str:
    """Return which versions of the reading libraries there are."""
    versions = []
    for name in _READERS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return ", ".join(versions)


def _whole(document: Document) -> Document:
    """Return the document without lone surrogates, which no file or database can hold."""
    try:
        document.text.encode()
    except UnicodeEncodeError:
        text = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in document.text)
        return Document(text, document.source, document.page, document.format)
    return document


def _decode(content: bytes, source: str) -> str:
    """Return the text of UTF-8, of UTF-16 or 32 with a mark, or of the encoding that fits best."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        encoding = "utf-32" if content[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else "utf-16"
        return content.decode(encoding)
    if b"\0" in content:
        raise DocumentError(f"{source} is not text: it holds null bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        beyond_ascii = sum(byte >= 0x80 for byte in content[:_SAMPLE_BYTES])
        latin = beyond_ascii < _LATIN_SHARE * min(len(content), _SAMPLE_BYTES)
        best = from_bytes(content, cp_isolation=_LATIN if latin else _LATIN + _OTHERS).best()
        if best is None and not latin:
            raise DocumentError(
                f"{source} is not text in an encoding that can be told; convert it to UTF-8"
            ) from None
    return str(content, best.encoding if best is not None else "latin_1")  # str(best) would change line ends


_SAMPLE_BYTES = 2**20
_LATIN_SHARE = 0.3  # texts in Latin letters have fewer bytes beyond ASCII, all others more
_LATIN = ["cp1252", "cp1250", "cp1254", "latin_1"]
_OTHERS = [
    "cp1251",
    "koi8_r",
    "cp1253",
    "cp1255",
    "cp1256",
    "shift_jis",
    "euc_jp",
    "gb18030",
    "big5",
    "euc_kr",
]


def _text(content: bytes, source: str) -> Iterator[Document]:
    yield Document(_decode(content, source), source)


def _markdown(content: bytes, source: str) -> Iterator[Document]:
    yield Document(_decode(content, source), source, format="markdown")


def _html(content: bytes, source: str) -> Iterator[Document]:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(content, "lxml")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for unseen in page.select("script, style, noscript, template, svg, nav, head"):
        unseen.decompose()
    text = MarkdownConverter(
        heading_style="ATX",
        strip=["a", "img"],
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
    ).convert_soup(page)
    if title and not page.find("h1"):
        text = f"# {title}\n\n{text}"
    yield Document(text.strip(), source, format="markdown")


def _pdf(content: bytes, source: str) -> Iterator[Document]:
    from pypdf import PasswordType, PdfReader

    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
        raise DocumentError(f"{source} is encrypted; save it without its password")
    pages = [page.extract_text() for page in reader.pages]
    if not any(text.strip() for text in pages):
        raise DocumentError(f"{source} has {len(pages)} pages without text; run text recognition over it")
    for number, text in enumerate(pages, start=1):
        yield Document(text, source, page=number)


def _docx(content: bytes, source: str) -> Iterator[Document]:
    import docx
    from docx.table import Table

    _require_small_archive(content, source)
    lines = []
    for part in docx.Document(io.BytesIO(content)).iter_inner_content():
        if isinstance(part, Table):
            lines.append(_table_lines([[cell.text for cell in row.cells] for row in part.rows]))
        elif part.text.strip():
            style = (part.style.name if part.style else None) or ""
            lines.append(_heading_marks(style) + part.text)
    yield Document("\n\n".join(lines), source, format="markdown")


def _heading_marks(style: str) -> str:
    if style == "Title":
        return "# "
    kind, _, level = style.rpartition(" ")
    if kind == "Heading" and level.isdigit():
        return "#" * min(int(level), 6) + " "
    return "- " if style.startswith("List") else ""


def _table_lines(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(" ".join(cell.split()) for cell in row) + " |" for row in rows)


def _pptx(content: bytes, source: str) -> Iterator[Document]:
    from pptx import Presentation

    _require_small_archive(content, source)
    for number, slide in enumerate(Presentation(io.BytesIO(content)).slides, start=1):
        title = slide.shapes.title
        parts = [f"# {title.text_frame.text}"] if title is not None and title.text_frame.text.strip() else []
        parts += _shape_texts(shape for shape in slide.shapes if title is None or shape != title)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(slide.notes_slide.notes_text_frame.text)
        text = "\n\n".join(part for part in parts if part.strip())
        yield Document(text, source, page=number, format="markdown")


def _shape_texts(shapes: Iterable[Any]) -> Iterator[str]:
    for shape in shapes:
        if hasattr(shape, "shapes"):  # a group
            yield from _shape_texts(shape.shapes)
        elif shape.has_text_frame:
            yield shape.text_frame.text
        elif getattr(shape, "has_table", False):
            yield _table_lines([[cell.text for cell in row.cells] for row in shape.table.rows])


def _require_small_archive(content: bytes, source: str) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    markup = [entry for entry in entries if entry.filename.endswith((".xml", ".rels"))]
    for counted, most, what in (
        (entries, MAX_UNPACKED_BYTES, "bytes"),
        (markup, MAX_MARKUP_BYTES, "bytes of XML"),
    ):
        unpacked = sum(entry.file_size for entry in counted)
        if unpacked > most:
            raise DocumentError(f"{source} unpacks to {unpacked} {what}; at most {most} are read")


def _csv(content: bytes, source: str) -> Iterator[Document]:
    """Give every row the names of its columns, so that a passage of rows is understood alone."""
    text = _decode(content, source)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:65536], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel_tab if source.lower().endswith(".tsv") else csv.excel
    csv.field_size_limit(MAX_FILE_BYTES)
    rows = csv.reader(io.StringIO(text, newline=""), dialect, strict=True, doublequote=True)
    names = next(rows, [])
    lines = [
        "; ".join(
            f"{names[column]}: {value}" if column < len(names) and names[column] else value
            for column, value in enumerate(row)
            if value.strip()
        )
        for row in rows
    ]
    yield Document("\n".join(lines) if lines else "; ".join(names), source)


def _json(content: bytes, source: str) -> Iterator[Document]:
    """Give every value the path to it on a line of its own: `users[0].name: Ann`."""
    yield Document(_value_lines([json.loads(_decode(content, source))], source), source)


def _json_lines(content: bytes, source: str) -> Iterator[Document]:
    lines = _decode(content, source).split("\n")  # a string may hold other line separators
    yield Document(_value_lines((json.loads(line) for line in lines if line.strip()), source), source)


def _value_lines(values: Iterable[Any], source: str) -> str:
    blocks, count = [], 0
    for value in values:
        lines = []
        for path, leaf in _leaves(value, ""):
            count += 1
            if count > MAX_JSON_VALUES:
                raise DocumentError(f"{source} has over {MAX_JSON_VALUES} values; split it first")
            lines.append(f"{path}: {leaf}" if path else leaf)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{position}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


_EXTRACTORS: dict[str, Extract] = {
    **dict.fromkeys((_TEXT + " " + _CODE).split(), _text),
    **dict.fromkeys((".md", ".markdown"), _markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _html),
    ".pdf": _pdf,
    ".docx": _docx,
    ".pptx": _pptx,
    **dict.fromkeys((".csv", ".tsv"), _csv),
    ".json": _json,
    **dict.fromkeys((".jsonl", ".ndjson"), _json_lines),
}
SUFFIXES = frozenset(_EXTRACTORS)
