"""Rules over logits that depend on the ids before: each row of a step sees exactly the ids it would have seen alone.

The processors are those of transformers' `generate`, so results are the same as with its arguments of these names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOptions:
    """Which rules; the defaults change nothing.

    Attributes:
        repetition_penalty: divides the positive logits of ids that were there already, prompt included, and multiplies
            the negative ones; 1 leaves them.
        no_repeat_ngram_size: no run of that many ids comes twice, prompt included; 0 allows all.
        min_tokens: ids before the answer may end.
        bad_words: runs of ids that may not be written.

    Raises:
        ValueError: a value is out of range.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty must be more than 0, got {self.repetition_penalty}")
        for name in ("no_repeat_ngram_size", "min_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


class Rules:
    """The rules of one request.

    Args:
        options: which ones.
        prompt_tokens: ids of the prompt.
        eos_ids: ids that end an answer.
        device: where the logits are.
    """

    def __init__(
        self,
        options: RuleOptions,
        prompt_tokens: int,
        eos_ids: Collection[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self._processors = LogitsProcessorList()
        ends = sorted(eos_ids)
        words = [list(word) for word in options.bad_words if list(word) not in ([], *([end] for end in ends))]
        if options.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
        if options.no_repeat_ngram_size:
            self._processors.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
        if words:
            self._processors.append(NoBadWordsLogitsProcessor(words, eos_token_id=ends or None))
        if options.min_tokens and ends:
            self._processors.append(
                MinNewTokensLengthLogitsProcessor(prompt_tokens, options.min_tokens, ends, device=str(device))
            )

    def __bool__(self) -> bool:
        return bool(self._processors)

    @torch.inference_mode()
    def apply(self, logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        """Return the logits (rows, vocab) in fp32 after the rules.

        Args:
            logits: of the last `rows` positions of `ids`, (rows, vocab).
            ids: all ids up to the last row's, that one included.
        """
        rows = len(logits)
        before = torch.tensor([list(ids)], device=logits.device)  # (1, positions)
        scores = logits.to(torch.float32, copy=True)
        return torch.cat(
            [
                self._processors(before[:, : len(ids) - rows + row + 1], scores[row : row + 1])
                for row in range(rows)
            ]
        )
