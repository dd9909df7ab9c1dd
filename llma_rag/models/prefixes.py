"""Prefill blocks computed before: a prompt that begins like an earlier one is computed from its first new block on.

What a block computes depends on its ids and on all before, and on nothing else, because a prefill block has one
shape. So a block found again is bit-identical to one computed afresh.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import torch

from llma_rag.models.memory import PREFILL_BLOCK

BlockKey = bytes
Block = list[torch.Tensor]  # what the memory keeps, each (heads, PREFILL_BLOCK, dim)


def block_keys(ids: Sequence[int]) -> list[BlockKey]:
    """Return a key for each whole block: equal for equal ids up to its end.

    >>> one, two = block_keys(list(range(300)))
    >>> block_keys(list(range(128))) == [one]
    True
    """
    keys: list[BlockKey] = []
    before = b""
    for start in range(0, len(ids) - PREFILL_BLOCK + 1, PREFILL_BLOCK):
        block = array("q", ids[start : start + PREFILL_BLOCK])
        before = hashlib.blake2b(before + block.tobytes(), digest_size=24).digest()
        keys.append(before)
    return keys


class PrefixCache:
    """Blocks by key, within a budget of bytes; those that were not used for longest go first.

    Args:
        budget: most bytes; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._blocks: OrderedDict[BlockKey, Block] = OrderedDict()

    def get(self, key: BlockKey) -> Block | None:
        """Return a block, if it is there."""
        return self._blocks.get(key)

    def wants(self, key: BlockKey, size: int) -> bool:
        """Return whether a block of that many bytes would be kept, and is not there yet."""
        return size <= self.budget and key not in self._blocks

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Note that a prompt has used blocks; its beginning, without which the rest is of no use, goes last."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def put(self, key: BlockKey, block: Block) -> None:
        """Keep a block, and let others go where they are too many."""
        while self._blocks and self.bytes + _size(block) > self.budget:
            _, oldest = self._blocks.popitem(last=False)
            self.bytes -= _size(oldest)
        self._blocks[key] = block
        self.bytes += _size(block)

    def clear(self) -> None:
        """Forget all blocks."""
        self._blocks.clear()
        self.bytes = 0


def _size(block: Block) -> int:
    return sum(tensor.nbytes for tensor in block)
