"""What to compare with: the `generate` of transformers, plain and with its prompt lookup."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

PROMPT_LOOKUP_TOKENS = 10
# What a checkpoint's generation config may change about greedy decoding, set back.
_PURE_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One answer by one mode; seconds are wall-clock, `accepted_lengths` are drafted ids by pass that read drafts."""

    prefill_s: float
    decode_s: float
    forward_passes: int
    drafted: int
    accepted_lengths: list[int]
    token_ids: list[int]

    @property
    def accepted(self) -> int:
        """Drafted ids that are in the answer."""
        return sum(self.accepted_lengths)


class StockModel:
    """A model as transformers runs it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model

    def measure(self, prompt_ids: Sequence[int], max_tokens: int, *, prompt_lookup: bool) -> Measurement:
        """Answer greedily with `generate`; its prefill is timed by a forward pass of its own."""
        inputs = torch.tensor([list(prompt_ids)], device=self._model.device)
        options: dict[str, Any] = {"prompt_lookup_num_tokens": PROMPT_LOOKUP_TOKENS} if prompt_lookup else {}
        with torch.inference_mode():
            prefill_s = self._timed_prefill(inputs)
            started = self._now()
            with self._watched_passes() as passes:
                output = self._model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=max_tokens,
                    **_PURE_GREEDY,
                    **options,
                )
            wall_s = self._now() - started
        token_ids = output[0, len(prompt_ids) :].tolist()
        ends = [*(begin for begin, _ in passes[1:]), len(prompt_ids) + len(token_ids) - 1]
        accepted_lengths = [end - begin - 1 for (begin, _), end in zip(passes, ends, strict=True)]
        accepted_lengths[0] -= len(prompt_ids) - 1
        if passes[0][1] == len(prompt_ids):  # the first pass read the prompt only, and no draft with it
            del accepted_lengths[0]
        return Measurement(
            prefill_s=prefill_s,
            decode_s=wall_s - prefill_s,
            forward_passes=len(passes),
            drafted=passes[0][1] - len(prompt_ids) + sum(rows - 1 for _, rows in passes[1:]),
            accepted_lengths=accepted_lengths,
            token_ids=token_ids,
        )

    @torch.inference_mode()
    def top2_gap(self, context_ids: Sequence[int]) -> float:
        """Return how far the best next id's logit is above the second best's."""
        inputs = torch.tensor([list(context_ids)], device=self._model.device)
        best, second = self._model(inputs, logits_to_keep=1).logits[0, -1].float().topk(2).values.tolist()
        return float(best - second)

    def _timed_prefill(self, inputs: torch.Tensor) -> float:
        started = self._now()
        self._model(inputs, logits_to_keep=1, use_cache=True)
        return self._now() - started

    @contextmanager
    def _watched_passes(self) -> Iterator[list[tuple[int, int]]]:
        """Collect the first position of each forward pass and how many it reads."""
        passes: list[tuple[int, int]] = []

        def note(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            passes.append((int(kwargs["cache"].get_seq_length()), kwargs["input_ids"].shape[1]))

        handle = self._model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield passes
        finally:
            handle.remove()

    def _now(self) -> float:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()
