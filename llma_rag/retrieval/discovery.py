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


def find_files(paths: Iterable[str | Path], suffixes: Collection[str]) -> Found:
    """Return the files named, and those below the folders named whose suffix is among `suffixes`.

    Symbolic links are followed; a link back to a folder that is being walked is skipped with a reason, as
    are broken links and folders that may not be read. Names that begin with a dot are left out below folders.

    Raises:
        DocumentError: a path does not exist, or names a file of another kind.
    """
    found = Found()
    files: dict[Path, None] = {}
    visited: set[tuple[int, int]] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise DocumentError(f"there is no file or folder {path}")
        if path.is_dir():
            files.update(dict.fromkeys(_walk(path.resolve(), (), visited, suffixes, found.skipped)))
        elif path.suffix.lower() not in suffixes:
            raise DocumentError(
                f"{path} is not a document: its name must end with one of {' '.join(sorted(suffixes))}"
            )
        else:
            files[path.resolve()] = None
    found.files = list(files)
    return found


def _walk(
    folder: Path,
    ancestors: tuple[tuple[int, int], ...],
    visited: set[tuple[int, int]],
    suffixes: Collection[str],
    skipped: list[Skipped],
) -> Iterator[Path]:
    identity = _identity(folder)
    if identity in ancestors:
        skipped.append(Skipped(str(folder), f"is a symbolic link loop, back to {folder.resolve()}"))
        return
    if identity in visited:
        return
    visited.add(identity)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        skipped.append(Skipped(str(folder), f"cannot be listed: {error.strerror}"))
        return
    for path in entries:
        if path.name.startswith("."):
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if path.suffix.lower() in suffixes or path.is_symlink():
                skipped.append(Skipped(str(path), _link_problem(error)))
            continue
        if stat.S_ISDIR(mode):
            yield from _walk(path, (*ancestors, identity), visited, suffixes, skipped)
        elif stat.S_ISREG(mode) and path.suffix.lower() in suffixes:
            yield path.resolve()


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _link_problem(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link loop"
    if error.errno == errno.ENOENT:
        return "is a symbolic link to nothing"
    return f"cannot be read: {os.strerror(error.errno or 0)}"
