"""Engines by what they were asked for: loaded on first use, once per process, shared by all who ask for the same."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

from llma_rag.engine import DEFAULT_PREFIX_CACHE_MB, Engine

_engines: dict[str, Engine] = {}
_loading: dict[str, threading.Lock] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What `Engine.load` is asked for; see there."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    width: int | None = None
    candidates: int | None = None
    max_context: int | None = None
    prefix_cache_mb: int = DEFAULT_PREFIX_CACHE_MB
    model_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal for equal specifications."""
        return json.dumps([getattr(self, name) for name in self.__slots__], sort_keys=True, default=repr)


def loaded_engine(spec: EngineSpec) -> Engine | None:
    """Return the engine, if it has been loaded."""
    return _engines.get(spec.key)


def shared_engine(spec: EngineSpec) -> Engine:
    """Return the engine, loading it first where needed; callers that come meanwhile wait for the same one."""
    with _lock:
        loading = _loading.setdefault(spec.key, threading.Lock())
    with loading:
        if spec.key not in _engines:
            _engines[spec.key] = Engine.load(
                spec.model,
                device=spec.device,
                dtype=spec.dtype,
                width=spec.width,
                candidates=spec.candidates,
                max_context=spec.max_context,
                prefix_cache_mb=spec.prefix_cache_mb,
                model_kwargs=spec.model_kwargs,
            )
        return _engines[spec.key]


def forget_engines() -> None:
    """Let the shared engines go; their memory is free once nobody uses them any more."""
    with _lock:
        _engines.clear()
