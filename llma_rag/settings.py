"""The settings that every adapter's models share, checked, and the engine that they name, loaded on first use."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import torch
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from llma_rag.engine import DEFAULT_MAX_TOKENS, DEFAULT_PREFIX_CACHE_MB, Engine, RequestOptions
from llma_rag.errors import ModelError
from llma_rag.models.runner import MAX_CANDIDATES
from llma_rag.provenance import Reference
from llma_rag.sharing import EngineSpec, loaded_engine, shared_engine

if TYPE_CHECKING:
    from llma_rag.remote import RemoteEngine

RULES = ("repetition_penalty", "no_repeat_ngram_size", "min_tokens", "bad_words")
_PER_CALL = ("max_tokens", "timeout", "draft", "reuse_prefix", *RULES)
_CALL_TAKES = ("stop", "references", *_PER_CALL, "model", "temperature")
_OF_LOCAL_ENGINES = (
    "device",
    "dtype",
    "width",
    "candidates",
    "max_context",
    "prefix_cache_mb",
    "model_kwargs",
)
_GREEDY = "nothing, decoding is greedy"
_ELSEWHERE = {  # what other classes call it, and what it is here
    "model_id": "model",
    "model_name": "model",
    "tokenizer": "engine=Engine(model, tokenizer)",
    "tokenizer_name": "nothing, the model's own is taken",
    "is_chat_model": "nothing, the tokenizer's chat template tells",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "context_window": "max_context",
    "stopping_ids": "stop",
    "torch_dtype": "dtype",
    "device_map": 'model_kwargs={"device_map": ...}',
    "quantization_config": 'model_kwargs={"quantization_config": ...}',
    "pipeline": "engine=Engine(pipeline.model, pipeline.tokenizer)",
    "pipeline_kwargs": "max_tokens and stop",
    "generate_kwargs": _GREEDY,
    "do_sample": _GREEDY,
    "top_p": _GREEDY,
    "top_k": _GREEDY,
    "num_beams": _GREEDY,
}

STRICT = ConfigDict(
    hide_input_in_errors=True,
    extra="forbid",
    protected_namespaces=(),
    populate_by_name=True,
    arbitrary_types_allowed=True,
)


class EngineSettings(BaseModel):
    """The settings of a model, the same in every framework and for chat and completion; an unknown one is an error."""

    model_config = STRICT

    model: str
    """Hub name, local folder, GGUF file, or `smollm2-135m`, which needs no hub."""
    engine: Any = Field(default=None, exclude=True, repr=False)
    """An `llma_rag.Engine` that is loaded already; `model` then is only its name."""
    base_url: str | None = None
    """Of an OpenAI-compatible server that has the model, such as `http://127.0.0.1:8000/v1`; needs the `remote` extra."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Of that server; without effect on a local model."""
    max_retries: int | None = Field(default=None, ge=0)
    """Of requests that the server is too busy for, 2 by default; without effect on a local model."""
    device: str = "auto"
    dtype: str = "auto"
    width: int | None = Field(default=None, ge=2)
    """Positions per verify step; None takes one that is exact here."""
    candidates: int | None = Field(default=None, ge=1, le=MAX_CANDIDATES)
    """Drafts that a verify step checks side by side; None takes 1 where rows are not cheap."""
    max_context: int | None = Field(default=None, ge=1)
    """Most positions, prompt and answer together."""
    prefix_cache_mb: int = Field(default=DEFAULT_PREFIX_CACHE_MB, ge=0)
    """MiB for the beginnings of earlier prompts, which need not be computed again."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to `from_pretrained` of transformers."""
    max_tokens: int | None = Field(default=DEFAULT_MAX_TOKENS, ge=1)
    """Most tokens of an answer; None takes what room the context has."""
    stop: list[str] | None = None
    """Strings that end an answer and are not part of it."""
    references: Sequence[Any] = Field(default=(), exclude=True, repr=False)
    """Texts or documents that every answer may copy from."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """More than 1 makes ids less likely that were there already, prompt included."""
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    """No run of that many ids comes twice, prompt included; 0 allows all."""
    min_tokens: int = Field(default=0, ge=0)
    """Ids before an answer may end."""
    bad_words: list[str] = Field(default_factory=list)
    """Words that may not be written."""
    temperature: float = 0.0
    """0: decoding is greedy."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which an answer that is not complete is an error."""

    @model_validator(mode="before")
    @classmethod
    def _require_known(cls, values: Any) -> Any:
        known = {*cls.model_fields, *(field.alias for field in cls.model_fields.values() if field.alias)}
        if isinstance(values, dict) and not values.keys() <= known:
            listed = {*EngineSettings.model_fields, *(known & cls.__annotations__.keys())}
            raise ValueError(_unknown("setting", values.keys() - known, listed))
        return values

    @field_validator("base_url")
    @classmethod
    def _require_address(cls, address: str | None) -> str | None:
        """Refuse what is no address, and passwords in it, which would come into traces."""
        if address is None:
            return None
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError(
                "base_url must be like http://127.0.0.1:8000/v1, without user and password; use api_key"
            )
        return address

    @field_validator("api_key")
    @classmethod
    def _require_one_word(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch(r"[!-~]+", key.get_secret_value()):
            raise ValueError(
                "api_key must be one word of ASCII characters, without a line end; a key read from a file may need strip()"
            )
        return key

    @model_validator(mode="after")
    def _require_one_place(self) -> Self:
        """Refuse what has no effect where the model is behind a server."""
        if self.base_url is not None:
            of_engine = ("engine", *_OF_LOCAL_ENGINES)
            fields = type(self).model_fields
            given = [
                name
                for name in of_engine
                if getattr(self, name) != fields[name].get_default(call_default_factory=True)
            ]
            if given:
                raise ValueError(
                    f"{', '.join(given)} and base_url exclude each other: the server has its own"
                )
        return self

    @field_validator("engine")
    @classmethod
    def _require_engine(cls, engine: Any) -> Any:
        if engine is not None and not isinstance(engine, Engine):
            raise ValueError(
                f"engine must be an llma_rag.Engine, got {type(engine).__name__}; make one with Engine(model, tokenizer)"
            )
        return engine

    @field_validator("device", mode="before")
    @classmethod
    def _named_device(cls, device: Any) -> Any:
        """Take a number as pipelines of transformers do: that GPU, or the CPU below 0."""
        if isinstance(device, int) and not isinstance(device, bool):
            return "cpu" if device < 0 else f"cuda:{device}"
        return str(device) if isinstance(device, torch.device) else device

    @field_validator("dtype", mode="before")
    @classmethod
    def _named_dtype(cls, dtype: Any) -> Any:
        return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype

    @field_validator("temperature")
    @classmethod
    def _require_greedy(cls, temperature: float) -> float:
        return require_greedy(temperature)

    @property
    def _spec(self) -> EngineSpec:
        return EngineSpec(
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            width=self.width,
            candidates=self.candidates,
            max_context=self.max_context,
            prefix_cache_mb=self.prefix_cache_mb,
            model_kwargs=dict(self.model_kwargs),
        )

    def _spec_for(self, kwargs: dict[str, Any]) -> EngineSpec:
        name = kwargs.pop("model", None)
        return self._spec if name is None else replace(self._spec, model=name)

    def _loaded_engine(self) -> Engine | None:
        return self.engine if self.engine is not None else loaded_engine(self._spec)

    def _remote(self, model: str) -> RemoteEngine | None:
        """Return the server's engine, None where the model is here."""
        if self.base_url is None:
            return None
        remote = _remote_module()
        key = None if self.api_key is None else self.api_key.get_secret_value()
        engine: RemoteEngine = remote.remote_engine(self.base_url, model, key, self.max_retries)
        return engine

    def _engine(self, kwargs: dict[str, Any]) -> Engine | RemoteEngine:
        """Return the engine, loading it first where needed; a call may name another model."""
        if (remote := self._remote(kwargs.get("model", self.model))) is not None:
            kwargs.pop("model", None)
            return remote
        spec = self._spec_for(kwargs)
        if self.engine is not None and spec.model == self.model:
            engine: Engine = self.engine
            return engine
        return shared_engine(spec)

    async def _aengine(self, kwargs: dict[str, Any]) -> Engine | RemoteEngine:
        """Return the same; the event loop goes on while the model is loaded."""
        name = kwargs.get("model", self.model)
        if self.base_url is not None:
            return await asyncio.to_thread(self._engine, kwargs)
        if name != self.model or self._loaded_engine() is None:
            return await asyncio.to_thread(self._engine, kwargs)
        return self._engine(kwargs)

    def _options(
        self, stop: list[str] | None, kwargs: dict[str, Any], references: list[Reference]
    ) -> RequestOptions:
        """Return the engine's options of a call.

        Raises:
            TypeError: an argument is not known.
            ValueError: the temperature is not 0.
        """
        kwargs = dict(kwargs)
        require_greedy(kwargs.pop("temperature", 0.0))
        kwargs.pop("stream", None)
        unknown = kwargs.keys() - set(_PER_CALL)
        if unknown:
            raise TypeError(_unknown("argument", unknown, _CALL_TAKES))
        options = RequestOptions(
            references=references,
            max_tokens=kwargs.get("max_tokens", self.max_tokens),
            stop=stop if stop is not None else self.stop or [],
            timeout=kwargs.get("timeout", self.timeout),
        )
        rules = {name: getattr(self, name) for name in RULES}
        given = {name: kwargs[name] for name in (*RULES, "draft", "reuse_prefix") if name in kwargs}
        options.update(RequestOptions(**rules))  # type: ignore[typeddict-item]
        options.update(RequestOptions(**given))  # type: ignore[typeddict-item]
        return options


def _remote_module() -> Any:
    try:
        return importlib.import_module("llma_rag.remote")
    except ImportError as error:
        raise ModelError(
            f"base_url needs a library that is missing ({error.name}); `pip install 'llma-rag[remote]'` brings it"
        ) from error


def _unknown(what: str, names: Iterable[str], known: Iterable[str]) -> str:
    """Return an error's text: what is not known, what it is called here, and what there is."""
    known = sorted(known)
    told = []
    for name in sorted(names):
        near = get_close_matches(name, known, n=1)
        instead = _ELSEWHERE.get(name) or (near[0] if near else None)
        told.append(f"{name} (here: {instead})" if instead else name)
    return f"unknown {what}{'s' if len(told) > 1 else ''} {', '.join(told)}; there are {', '.join(known)}"


def require_greedy(temperature: float | None) -> float:
    """Return 0, the one temperature there is.

    Raises:
        ValueError: it is another.
    """
    if temperature:
        raise ValueError(
            f"temperature must be 0, got {temperature}: decoding is greedy, references could not keep a sample"
        )
    return 0.0
