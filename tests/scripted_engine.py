"""A real engine whose model says what a test wants: tokenizer, chat template, decoding and streams are the real ones."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

from llma_rag.engine import Engine
from tests.tiny import tiny_model, tiny_tokenizer

CONTEXT = 8192


def real_template(name):
    """Return a chat template as its model's makers wrote it."""
    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def scripted_engine(reply: str | Callable[[str], str], template: str | None = None) -> Engine:
    """Return an engine that answers a rendered prompt with `reply`, or with what `reply` returns for it."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    if template is not None:
        tokenizer.chat_template = template
    model = tiny_model(
        "llama",
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=CONTEXT,
    )
    engine = Engine(model, tokenizer, name="scripted")
    engine.runner = _ScriptedRunner(engine.runner, tokenizer, reply)
    return engine


class _ScriptedRunner:
    """Predicts the ids of a known text after the prompt."""

    def __init__(self, runner, tokenizer, reply):
        self._runner = runner
        self._tokenizer = tokenizer
        self._reply = reply
        self.prompts = []
        self.step_s = 0.0  # that a step takes
        self.steps = 0

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def recall(self, ids):
        return 0

    def prefill(self, ids, before_block=lambda: None, **_):
        before_block()
        self.prompts.append(self._tokenizer.decode(ids))
        text = self._reply(self.prompts[-1]) if callable(self._reply) else self._reply
        self._answer = [*self._tokenizer(text).input_ids, self._tokenizer.eos_token_id]
        self._begin = len(ids)
        return self._answer[0]

    def verify(self, position, candidates, **_):
        time.sleep(self.step_s)
        self.steps += 1
        first = position - self._begin + 1
        following = self._answer[first:] + [0] * self.width
        return [following[: len(ids)] for ids in candidates]

    def keep(self, candidate):
        pass
