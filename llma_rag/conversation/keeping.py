"""Conversations in SQLite: a turn is on disk once it is finished, whole or not at all."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llma_rag.closing import Closing
from llma_rag.conversation.turns import Conversation, Turn
from llma_rag.errors import StoreError

_FORMAT = 1
_BUSY_S = 30
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS conversations (
        id TEXT PRIMARY KEY, title TEXT NOT NULL, about TEXT NOT NULL, begun REAL NOT NULL,
        changed REAL NOT NULL, first_shown INTEGER NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS turns (
        conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        number INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (conversation, number)
    )""",
)


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """A conversation as it is listed; times are seconds since 1970."""

    id: str
    title: str
    about: str
    begun: float
    changed: float
    turns: int


class ConversationStore(Closing):
    """Conversations by id, in a file or, without one, in memory; threads may share it.

    Raises:
        StoreError: the file cannot be opened, is damaged, or of another kind.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            self._database = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=_BUSY_S,
                check_same_thread=False,
                isolation_level=None,
            )
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"the conversations in {path} cannot be opened: {error}; name another file"
            ) from error
        try:
            with self._access():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def begin(self, title: str = "", about: str = "") -> Conversation:
        """Begin a conversation.

        Args:
            title: for lists; the first question where none is given.
            about: which documents it is about, to find it again.
        """
        conversation = Conversation(uuid.uuid4().hex)
        now = time.time()
        with self._access() as database:
            database.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, 0)",
                (conversation.id, title, about, now, now),
            )
        return conversation

    def add_turn(self, conversation: Conversation) -> None:
        """Keep the last turn of a conversation, which was begun here, behind those that are kept."""
        turn = conversation.turns[-1]
        with self._access() as database:
            database.execute(
                "INSERT INTO turns SELECT ?1, coalesce(max(number) + 1, 0), ?2 FROM turns WHERE conversation = ?1",
                (conversation.id, json.dumps(turn.to_json(), default=str)),
            )
            database.execute(
                "UPDATE conversations SET changed = ?, first_shown = ?, title = coalesce(nullif(title, ''), ?) "
                "WHERE id = ?",
                (time.time(), conversation.first_shown, turn.question, conversation.id),
            )

    def get(self, conversation_id: str, about: str | None = None) -> Conversation | None:
        """Return a conversation, None where there is none of this id, or none about these documents."""
        with self._access("DEFERRED") as database:
            row = database.execute(
                "SELECT first_shown FROM conversations WHERE id = ? AND about = coalesce(?, about)",
                (conversation_id, about),
            ).fetchone()
            if row is None:
                return None
            contents = database.execute(
                "SELECT content FROM turns WHERE conversation = ? ORDER BY number", (conversation_id,)
            ).fetchall()
        return Conversation(conversation_id, [Turn.from_json(json.loads(one)) for (one,) in contents], row[0])

    def list(self, about: str | None = None) -> list[ConversationSummary]:
        """Return what is kept, or what of it is about some documents, the last changed first."""
        with self._access("DEFERRED") as database:
            rows = database.execute(
                "SELECT id, title, about, begun, changed, (SELECT count(*) FROM turns WHERE conversation = id) "
                "FROM conversations WHERE about = coalesce(?, about) ORDER BY changed DESC, id",
                (about,),
            ).fetchall()
        return [ConversationSummary(*row) for row in rows]

    def rename(self, conversation_id: str, title: str, about: str | None = None) -> bool:
        """Give a conversation another title, if it is about these documents; return whether there was one."""
        with self._access() as database:
            renamed = database.execute(
                "UPDATE conversations SET title = ? WHERE id = ? AND about = coalesce(?, about)",
                (title, conversation_id, about),
            )
            return renamed.rowcount > 0

    def delete(self, conversation_id: str, about: str | None = None) -> bool:
        """Forget a conversation, if it is about these documents; return whether there was one."""
        with self._access() as database:
            deleted = database.execute(
                "DELETE FROM conversations WHERE id = ? AND about = coalesce(?, about)",
                (conversation_id, about),
            )
            return deleted.rowcount > 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _prepare(self) -> None:
        database = self._database
        (found,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if found != _FORMAT and (found or tables):
            raise StoreError(
                f"{self._path} is no file of conversations of format {_FORMAT}; name another file"
            )
        for statement in _SCHEMA:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {_FORMAT}")

    @contextmanager
    def _access(self, kind: Literal["DEFERRED", "IMMEDIATE"] = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Let one thread in, to change something (`IMMEDIATE`) or to read; what it changes is kept whole or not at all."""
        with self._lock:
            try:
                self._database.execute("PRAGMA foreign_keys = ON")
                self._database.execute(f"BEGIN {kind}")
                try:
                    yield self._database
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                raise StoreError(
                    f"the conversations in {self._path} cannot be read or written: {error}"
                ) from error
