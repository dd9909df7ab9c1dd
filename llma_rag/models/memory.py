"""The KV memory: preallocated slots, one per absolute position, seen through views of fixed extents.

A forward pass writes its keys and values at the slots of its positions and attends to the first `view`
slots. The view depends on the position alone, so a position is always computed with the same extent,
whatever the step that reaches it. Slots beyond the last real position hold leftovers of padding and of
rejected drafts; the causal mask hides them until they are overwritten.

Where a step checks several drafts side by side, each has a copy of all slots: what the drafts have in common is
the same in each, and after the step the kept one's slots are copied to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

PREFILL_BLOCK = 128  # positions per prefill pass; divides every view
_FINE_VIEW = 256  # views grow by this much up to _FINE_LIMIT, then by _COARSE_VIEW
_FINE_LIMIT = 4096
_COARSE_VIEW = 1024


def view_at(position: int) -> int:
    """Return how many slots a pass that starts at `position` attends to.

    >>> view_at(0), view_at(255), view_at(256), view_at(5000)
    (256, 256, 512, 5120)
    """
    step = _FINE_VIEW if position < _FINE_LIMIT else _COARSE_VIEW
    return (position // step + 1) * step


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps per position."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    is_sliding: bool

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of keys and values at one position."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize

    def zeros(self, candidates: int, slots: int, dim: int) -> torch.Tensor:
        """Return empty slots, (candidates, heads, slots, dim)."""
        return torch.zeros(candidates, self.heads, slots, dim, dtype=self.dtype, device=self.device)


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, each (candidates, heads, slots, dim)."""

    def __init__(self, shape: LayerShape, candidates: int, slots: int, window: SlotWindow) -> None:
        super().__init__()
        self.is_sliding = shape.is_sliding  # the mask narrows a sliding layer, not the memory
        self.is_initialized = True
        self._window = window
        with torch.inference_mode():  # written under it later, so allocated under it
            self.keys: torch.Tensor = shape.zeros(candidates, slots, shape.key_dim)
            self.values: torch.Tensor = shape.zeros(candidates, slots, shape.value_dim)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the slots exist from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (batch, heads, rows, dim) at the window; return views of (batch, heads, view, dim)."""
        batch, view = key_states.shape[0], self._window.view
        self._window.write(self.keys, key_states)
        self._window.write(self.values, value_states)
        return self.keys[:batch, :, :view], self.values[:batch, :, :view]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return extent and offset of the slots that a mask covers."""
        return self._window.view, 0

    def get_seq_length(self) -> int | torch.Tensor:
        """Return the slot of the first row."""
        return self._window.start if self._window.slots is None else self._window.slots[0]

    def get_max_length(self) -> int:
        """Return the number of slots."""
        return int(self.keys.shape[-2])


@dataclass(slots=True)
class SlotWindow:
    """Where the next pass writes and how far it sees; shared by all layers.

    A recorded pass reads where to write from the tensor `slots`, (rows,), instead of `start`.
    """

    start: int = 0
    view: int = _FINE_VIEW
    slots: torch.Tensor | None = None

    def write(self, tensor: torch.Tensor, rows: torch.Tensor) -> None:
        """Write (batch, heads, rows, dim) into (candidates, heads, slots, dim); a batch of 1 is for all candidates."""
        if self.slots is not None:
            tensor.index_copy_(2, self.slots, rows)
        else:
            tensor[:, :, self.start : self.start + rows.shape[2]] = rows


class SlotMemory(Cache):  # type: ignore[misc]
    """Keys and values of every layer at every position up to the context length, and the states of one layer.

    Args:
        shapes: what each layer keeps.
        slots: positions.
        candidates: drafts that a step checks side by side.
        states: what is kept beside keys and values, as `LayerShape` of values.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], slots: int, candidates: int = 1, states: LayerShape | None = None
    ) -> None:
        self.window = SlotWindow()
        self.candidates = candidates
        self.slot_layers = [SlotLayer(shape, candidates, slots, self.window) for shape in shapes]
        self._tensors = [tensor for layer in self.slot_layers for tensor in (layer.keys, layer.values)]
        if states is not None:
            with torch.inference_mode():
                self.states = states.zeros(candidates, slots, states.value_dim)  # (candidates, 1, slots, dim)
            self._tensors.append(self.states)
        super().__init__(layers=list(self.slot_layers))

    def place(self, position: int, view: int) -> None:
        """Let the next pass write at `position` and see the first `view` slots."""
        self.window.start = position
        self.window.view = view
        self.window.slots = None

    def place_at(self, slots: torch.Tensor, view: int) -> None:
        """Let the next pass write at `slots` (rows,), on the device, and see the first `view` slots."""
        self.window.slots = slots
        self.window.view = view

    @torch.inference_mode()
    def keep(self, candidate: int, start: int, rows: int) -> None:
        """Copy what the last step wrote for one candidate to the others."""
        for tensor in self._tensors if self.candidates > 1 else ():
            written = tensor[:, :, start : start + rows]
            written.copy_(written[candidate].clone())

    @property
    def block_bytes(self) -> int:
        """Bytes of what is kept of one prefill block."""
        return sum(tensor[0].nbytes // tensor.shape[2] for tensor in self._tensors) * PREFILL_BLOCK

    @torch.inference_mode()
    def read_block(self, start: int) -> list[torch.Tensor]:
        """Return a copy of what the slots of a prefill block hold, the same for all candidates."""
        return [tensor[0, :, start : start + PREFILL_BLOCK].clone() for tensor in self._tensors]

    @torch.inference_mode()
    def write_block(self, start: int, block: Sequence[torch.Tensor]) -> None:
        """Put a copy back."""
        for tensor, kept in zip(self._tensors, block, strict=True):
            tensor[:, :, start : start + PREFILL_BLOCK] = kept

    @torch.inference_mode()
    def zero_slots(self, start: int, stop: int) -> None:
        """Forget what some slots hold."""
        for tensor in self._tensors:
            tensor[:, :, start:stop] = 0

    @torch.inference_mode()
    def zero(self) -> None:
        """Forget everything: a leftover that is no number would poison rows that cannot even see it."""
        for tensor in self._tensors:
            tensor.zero_()

    @torch.inference_mode()
    def scramble(self, generator: torch.Generator) -> None:
        """Fill the slots with random values, the same for all candidates."""
        for tensor in self._tensors:
            tensor.copy_(torch.randn(tensor[0].shape, generator=generator))
