"""Finding document files: folders are walked with their links, each file once, hidden names left out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llma_rag.errors import DocumentError
from llma_rag.retrieval.documents import Skipped


@dataclass(slots=True)
class Found:
    """The files that were found, in a stable order, and what stood in the way."""

    files: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def as_paths(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return a path, or several, as a list."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def find_files(paths: str | Path | Iterable[str | Path], suffixes: Collection[str]) -> Found:
    """Return the files named, and those below the folders named whose suffix is among `suffixes`.

    Symbolic links are followed; a link back to a folder that is being walked is skipped with a reason, as
    are broken links and folders that may not be read. Names that begin with a dot are left out below folders.

    Raises:
        DocumentError: a path does not exist, or names a file of another kind.
    """
    found = Found()
    files: dict[Path, Path] = {}  # by where links lead: a file is read once
    visited: set[tuple[int, int]] = set()
    for path in as_paths(paths):
        if not path.exists():
            raise DocumentError(f"there is no file or folder {path}")
        root = absolute(path)
        if path.is_dir():
            for file in _walk(root, visited, suffixes, found.skipped):
                files.setdefault(file.resolve(), file)
        elif path.suffix.lower() not in suffixes:
            raise DocumentError(
                f"{path} is not a document: its name must end with one of {' '.join(sorted(suffixes))}"
            )
        elif not path.is_file():
            raise DocumentError(f"{path} is not a regular file; name a file or a folder")
        else:
            files.setdefault(root.resolve(), root)
    found.files = list(files.values())
    return found


def absolute(path: Path) -> Path:
    """Return a path from the root of the file system: a folder without links, a file with its own name."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


@dataclass(frozen=True, slots=True)
class _Level:
    """A folder that is being walked: what is left in it, and where it really is."""

    identity: tuple[int, int]
    left: Iterator[Path]


def _walk(
    root: Path, visited: set[tuple[int, int]], suffixes: Collection[str], skipped: list[Skipped]
) -> Iterator[Path]:
    levels: list[_Level] = []

    def enter(folder: Path) -> None:
        status = folder.stat()
        identity = status.st_dev, status.st_ino
        if any(level.identity == identity for level in levels):
            skipped.append(Skipped(str(folder), f"is a symbolic link loop, back to {folder.resolve()}"))
        elif identity not in visited:
            visited.add(identity)
            try:
                levels.append(_Level(identity, iter(sorted(folder.iterdir()))))
            except OSError as error:
                skipped.append(Skipped(str(folder), f"cannot be listed: {error.strerror}"))

    enter(root)
    while levels:
        path = next(levels[-1].left, None)
        if path is None:
            levels.pop()
            continue
        if path.name.startswith("."):
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if path.suffix.lower() in suffixes or path.is_symlink():
                skipped.append(Skipped(str(path), _link_problem(error)))
            continue
        if stat.S_ISDIR(mode):
            enter(path)
        elif stat.S_ISREG(mode) and path.suffix.lower() in suffixes:
            yield path


def _link_problem(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link loop"
    if error.errno == errno.ENOENT:
        return "is a symbolic link to nothing"
    return f"cannot be read: {os.strerror(error.errno or 0)}"
