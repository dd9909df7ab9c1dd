"""What has to be closed, and is by a `with` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """Gives a class with `close` its `with` block."""

    def close(self) -> None:
        """Let go of what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
