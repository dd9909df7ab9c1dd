"""Reading documents from files and folders: plain text and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llma_rag.errors import DocumentError

SUFFIXES = (".md", ".txt")
MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the file it came from."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: `text` is characters `start` to `end` of the document `source`."""

    text: str
    source: str
    start: int
    end: int


def read_documents(paths: Iterable[str | Path]) -> list[Document]:
    """Read files, and all text files below folders, in a stable order, each once.

    Raises:
        DocumentError: a path is missing, a folder holds no document, or a file cannot be read as UTF-8.
    """
    files = dict.fromkeys(file.resolve() for path in paths for file in _files_at(Path(path)))
    return [_read(file) for file in files]


def _files_at(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise DocumentError(f"there is no file or folder {path}")
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DocumentError(f"{path} is not a document: the name must end with {' or '.join(SUFFIXES)}")
        yield path
        return
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise DocumentError(f"the folder {path} holds no document ({', '.join(SUFFIXES)})")
    yield from found


def _read(path: Path) -> Document:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DocumentError(f"{path} has {size} bytes; at most {MAX_FILE_BYTES} are read")
        with path.open(encoding="utf-8-sig", newline="") as file:  # line ends as they are: ranges count them
            return Document(file.read(), str(path))
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror}") from error
