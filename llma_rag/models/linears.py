"""Linear layers for the CPU: weights packed once for oneDNN, activations in runs of whole rows.

The stock linear is up to twice as slow at a few rows, and its fp32 kernel treats the last rows of some
widths differently. Layers that read the same rows become one product. Packed weights replace the originals, so they are not held twice (but for an output
layer that shares its weight with the embedding). On a CPU that does not compute in bf16, bf16 layers
keep their weights in fp32 and round their results: the arithmetic that bf16 kernels do, at fp32's speed.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers.activations import ACT2CLS

from llma_rag.models.memory import PREFILL_BLOCK

_SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers that read the same rows
_ROW_RUN = 16_384  # elements below which torch does not split an elementwise operation among threads


def cpu_computes_in_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware."""
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """A linear layer over a weight in oneDNN's own layout: (..., in) to (..., out).

    Args:
        linears: one, or several that read the same rows: their outputs then stand beside each other.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.in_features = linears[0].in_features
        self.out_features = sum(linear.out_features for linear in linears)
        self.dtype = linears[0].weight.dtype
        self.compute_dtype = self.dtype if cpu_computes_in_bf16() else torch.float32
        weight = torch.cat([linear.weight.detach() for linear in linears]).to(self.compute_dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias: torch.Tensor | None = None
        if any(linear.bias is not None for linear in linears):
            biases = [_bias(linear) for linear in linears]
            self.bias = torch.cat(biases).to(self.compute_dtype)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T + bias in the layer's dtype."""
        if self.compute_dtype is self.dtype:
            return _packed_product(rows, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]
        result = _packed_product(rows.to(self.compute_dtype), self.weight, self.bias, "none", [], "")
        return result.to(self.dtype)  # type: ignore[no-any-return]


_packed_product = torch.ops.mkldnn._linear_pointwise.default


def _bias(linear: nn.Linear) -> torch.Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()


class SharedInput:
    """One product for linear layers that read the same rows, such as queries, keys and values.

    The first layer that is asked computes all; each result is handed out once and then forgotten. Threads do not see
    each other's.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self._product = PackedLinear(*linears)
        self._sizes = [linear.out_features for linear in linears]
        self._held = threading.local()

    def result(self, rows: torch.Tensor, index: int) -> torch.Tensor:
        """Return what the layer of this number makes of rows."""
        read, results = getattr(self._held, "last", (None, {}))
        if read is not rows or index not in results:
            results = dict(enumerate(self._product(rows).split(self._sizes, dim=-1)))
        result: torch.Tensor = results.pop(index)
        self._held.last = (rows, results) if results else (None, {})
        return result


class SharedInputLinear(nn.Module):
    """One of the layers that share a product."""

    def __init__(self, shared: SharedInput, index: int, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._shared = shared
        self._index = index

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T + bias."""
        return self._shared.result(rows, self._index)


class RowRuns(nn.Module):
    """An activation applied to runs of whole rows, so that threads never split a row.

    Where a row is split, the vectorised function and the scalar one that finishes it round differently,
    and a row's result depends on its place in the step. In a prefill block a row always has the same place.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return activation(inputs); `inputs` is (..., features)."""
        is_prefill_block = inputs.dim() == 3 and inputs.shape[1] == PREFILL_BLOCK  # experts get other shapes
        if inputs.numel() <= _ROW_RUN or is_prefill_block:
            return self.activation(inputs)  # type: ignore[no-any-return]
        features = inputs.shape[-1]
        runs = inputs.reshape(-1, features).split(max(1, _ROW_RUN // features))
        return torch.cat([self.activation(run) for run in runs]).reshape(inputs.shape)


def pack_for_cpu(model: nn.Module) -> int:
    """Replace the model's plain linear layers and activations in place; return how many linears.

    Quantised and subclassed linears stay as they are.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    packed = 0
    activations = _activation_types()
    parents = [module for module in model.modules() if not isinstance(module, nn.Linear)]  # these are to go
    for parent in parents:
        packed += sum(_share_input(parent, names) for names in _SHARING)
        for name in [name for name, _ in parent.named_children()]:
            child = getattr(parent, name)
            if _is_packable(child):
                setattr(parent, name, PackedLinear(child))
                packed += 1
            elif isinstance(child, activations) and not isinstance(parent, RowRuns):
                setattr(parent, name, RowRuns(child))
    return packed


def _share_input(parent: nn.Module, names: Sequence[str]) -> int:
    """Let a module's layers of these names share a product, where they can; return how many they are."""
    linears = [getattr(parent, name, None) for name in names]
    if not _are_packable_together(linears):
        return 0
    shared = SharedInput(linears)
    for index, (name, linear) in enumerate(zip(names, linears, strict=True)):
        setattr(parent, name, SharedInputLinear(shared, index, linear))
    return len(names)


def _activation_types() -> tuple[type[nn.Module], ...]:
    entries = (entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values())
    return tuple(entry for entry in entries if isinstance(entry, type) and issubclass(entry, nn.Module))


def _are_packable_together(linears: Sequence[Any]) -> TypeGuard[Sequence[nn.Linear]]:
    return (
        all(linear is not None and _is_packable(linear) for linear in linears)
        and len({(linear.in_features, linear.weight.dtype) for linear in linears}) == 1
    )


def _is_packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
        and module.weight.dtype in (torch.float32, torch.bfloat16)
    )


def packed_linears(model: nn.Module) -> tuple[int, int]:
    """Return how many of a model's linear layers are packed for the CPU, and how many are plain."""
    modules = list(model.modules())
    packed = sum(isinstance(module, PackedLinear | SharedInputLinear) for module in modules)
    return packed, sum(type(module) is nn.Linear for module in modules)
