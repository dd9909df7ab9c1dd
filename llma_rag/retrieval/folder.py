"""A store's folder: its files, the writer's lock, and vector files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakSet

from filelock import FileLock, Timeout

from llma_rag.errors import StoreError
from llma_rag.files import write_atomically
from llma_rag.retrieval.vectors import digest

_DATABASE = "store.sqlite"
_LOCK = ".lock"
_OURS = (_DATABASE, "vectors-")
_MAX_VECTOR_BYTES = 64 * 2**30
_locked_here: WeakSet[StoreFolder] = WeakSet()


class StoreFolder:
    """The place of a store on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.database = self.path / _DATABASE
        # the system frees a dead holder's lock; any thread may close a store
        self._lock = FileLock(self.path / _LOCK, timeout=0, thread_local=False)

    def require(self) -> None:
        """Raise StoreError unless there is a store."""
        if (self.path / "manifest.json").is_file():
            raise StoreError(
                f"the store {self.path} has a format that this version does not read; remove it and index again"
            )
        if not self.database.is_file():
            raise self.missing()

    @property
    def has_vectors(self) -> bool:
        """Whether there is a vector file."""
        return any(self.path.glob("vectors-*.faiss"))

    def missing(self) -> StoreError:
        """Return the error that says so."""
        return StoreError(
            f"there is no store in {self.path}; make one with `llma-rag index PATH --store {self.path}`, or open "
            "it for writing"
        )

    def make(self) -> None:
        """Make the folder where it is missing; a folder with other files in it is refused."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = [path for path in self.path.glob("[!.]*") if not path.name.startswith(_OURS)]
        except OSError as error:
            raise StoreError(f"the folder {self.path} cannot be made: {error.strerror}") from error
        if self.database.exists() and self.database.stat().st_size:
            return
        if others:
            raise StoreError(f"the folder {self.path} holds other files and no store; name an empty folder")
        if self.has_vectors:
            raise StoreError(
                f"the store {self.path} is corrupt: {_DATABASE} is missing or empty; remove the folder and index again"
            )

    def lock(self) -> None:
        """Keep other writers out until `unlock`, or until this process ends in whatever way.

        Raises:
            StoreError: there is another writer, or the folder may not be written.
        """
        try:
            self._lock.acquire()
        except Timeout:
            place = self.path.resolve()
            if any(other.path.resolve() == place for other in _locked_here):
                raise StoreError(
                    f"this process has the store {self.path} open for writing already; use that one, close() it first, or "
                    "open this one for reading"
                ) from None
            raise StoreError(
                f"another process has the store {self.path} open for writing; end it, or wait for it; a server takes "
                "documents itself; or open the store for reading"
            ) from None
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be written: {error.strerror}") from error
        _locked_here.add(self)

    def unlock(self) -> None:
        """Let other writers in."""
        self._lock.release()
        _locked_here.discard(self)

    def write_vectors(self, content: bytes) -> dict[str, str]:
        """Write a vector file; return its name and SHA-256 for the manifest.

        Raises:
            StoreError: the file system does not take it.
        """
        sha256 = digest(content)
        name = f"vectors-{sha256[:16]}.faiss"
        try:
            write_atomically(self.path / name, content)
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be written: {error.strerror}") from error
        return {"name": name, "sha256": sha256}

    def read_vectors(self, name: str, sha256: str) -> bytes:
        """Return a vector file's content.

        Raises:
            FileNotFoundError: a writer has replaced it meanwhile, or it is lost.
            ValueError: it is not what was written.
        """
        if Path(name).name != name:
            raise ValueError(f"a vector file has the name {name!r}")
        path = self.path / name
        if path.stat().st_size > _MAX_VECTOR_BYTES:
            raise ValueError(f"{name} has over {_MAX_VECTOR_BYTES} bytes")
        content = path.read_bytes()
        if digest(content) != sha256:
            raise ValueError(f"{name} is not what was written")
        return content

    def remove_vectors_but(self, name: str) -> None:
        """Remove the vector files of earlier states and of killed writers."""
        for pattern in ("vectors-*", ".vectors-*"):
            for path in self.path.glob(pattern):
                if path.name != name:
                    path.unlink(missing_ok=True)

    def bytes_on_disk(self) -> int:
        """Return the size of all the store's files."""
        return sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())
