"""What one layer of the model made of each position: which places of the context are alike to the model.

Two places where the same word stands may go on differently; the model's states before them tell which of them is
like the place where the output has arrived (PLD+, arXiv:2412.01447). They choose drafts, and change no token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from llma_rag.models.memory import SlotMemory

_DEPTH = 2 / 3  # of the layers; any from a sixth on serves, this is where choosing was best


def state_layer(model: PreTrainedModel) -> nn.Module | None:
    """Return the layer whose states are kept; None where the decoder's layers are not a plain list."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            layer: nn.Module = module[round(_DEPTH * (count - 1))]
            return layer
    return None


@contextmanager
def outputs_of(layer: nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """Collect what a layer makes of the passes inside, each (batch, rows, dim)."""
    outputs: list[torch.Tensor] = []
    if layer is None:
        yield outputs
        return
    handle = layer.register_forward_hook(lambda _, __, output: outputs.append(_states(output)))
    try:
        yield outputs
    finally:
        handle.remove()


def _states(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


class HiddenStates:
    """States of a layer, kept in the memory's slots; the `Scorer` of `llma_rag.decoding`.

    Args:
        layer: whose output is kept.
        memory: whose `states` they are kept in.
    """

    def __init__(self, layer: nn.Module, memory: SlotMemory) -> None:
        self._layer = layer
        self._memory = memory
        self._mean = memory.states.new_zeros(memory.states.shape[-1], dtype=torch.float32)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the states of passes inside."""
        handle = self._layer.register_forward_hook(self._keep)
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        self._memory.window.write(self._memory.states, _states(output)[:, None])  # (batch, 1, rows, dim)

    @torch.inference_mode()
    def begin(self, prompt_length: int) -> None:
        """Let likeness be measured from the mean over a prompt, which is what all its places have in common."""
        self._mean = self._memory.states[0, 0, :prompt_length].mean(0, dtype=torch.float32)

    def of_positions(self, count: int) -> torch.Tensor:
        """Return a copy of the states at the first positions, (count, dim), for a look at them."""
        return self._memory.states[0, 0, :count].cpu().clone()

    @torch.inference_mode()
    def scores(self, candidate_positions: Sequence[int], position: int) -> list[float]:
        """Return the cosines of the states at candidates with that at `position`, from the prompt's mean."""
        places = torch.tensor([*candidate_positions, position], device=self._mean.device)
        states = self._memory.states[0, 0].index_select(0, places).float() - self._mean
        directions = normalize(states, dim=-1)  # (candidates + 1, dim)
        scores: list[float] = (directions[:-1] @ directions[-1]).tolist()
        return scores
