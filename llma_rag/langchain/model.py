"""What LangChain's two kinds of model share beside the engine's settings."""

from __future__ import annotations

import hashlib
from typing import Any

from langchain_core.language_models.base import LangSmithParams
from pydantic import Field

from llma_rag.settings import RULES, STRICT, EngineSettings

_IDENTIFYING = (
    "model",
    "base_url",
    "device",
    "dtype",
    "width",
    "candidates",
    "max_context",
    "model_kwargs",
    "max_tokens",
    "temperature",
    *RULES,
)  # what an answer depends on: caches go by it
_SECRETS = ("token", "use_auth_token")  # of `model_kwargs`: neither caches nor traces may hold them


class LangChainSettings(EngineSettings):
    """The engine's settings, and those that LangChain has for every model."""

    model_config = STRICT

    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    """Strings that end an answer and are not part of it."""
    streaming: bool = False
    """Stream below `invoke` too, for callbacks that want every token."""

    @property
    def _identifying_params(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in _IDENTIFYING}
        known["model_kwargs"] = {
            name: value for name, value in self.model_kwargs.items() if name not in _SECRETS
        }
        if self.engine is not None:
            config = self.engine.model.config.to_json_string(use_diff=False)
            known["engine"] = hashlib.sha256(config.encode()).hexdigest()[:16]
            known["device"] = self.engine.model.device.type
            known["dtype"] = str(self.engine.model.dtype).removeprefix("torch.")
        return {**known, "stop_sequences": self.stop}  # LangChain puts a call's own under `stop`

    def _with_ls_provider(self, params: LangSmithParams) -> LangSmithParams:
        return LangSmithParams(**{**params, "ls_provider": "llma_rag"})

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's ids of a text, without special ones."""
        return self._engine({}).text_ids(text)
