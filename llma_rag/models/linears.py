"""Linear layers for the CPU: weights packed once for oneDNN, activations in runs of whole rows.

The stock linear is up to twice as slow at a few rows, and its fp32 kernel treats the last rows of some
widths differently. Packed weights replace the originals, so they are not held twice (but for an output
layer that shares its weight with the embedding). On a CPU that does not compute in bf16, bf16 layers
keep their weights in fp32 and round their results: the arithmetic that bf16 kernels do, at fp32's speed.
"""

from __future__ import annotations

import platform
from typing import TypeGuard

import torch
from torch import nn
from transformers.activations import ACT2CLS

_ROW_RUN = 16_384  # elements below which torch does not split an elementwise operation among threads


def cpu_computes_in_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware."""
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """A linear layer over a weight in oneDNN's own layout: (..., in) to (..., out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        self.compute_dtype = self.dtype if cpu_computes_in_bf16() else torch.float32
        weight = linear.weight.detach().to(self.compute_dtype)
        bias = None if linear.bias is None else linear.bias.detach().to(self.compute_dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T + bias in the layer's dtype."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows.to(self.compute_dtype), self.weight, self.bias, "none", [], ""
        )
        return result.to(self.dtype)


class RowRuns(nn.Module):
    """An activation applied to runs of whole rows, so that threads never split a row.

    Where a row is split, the vectorised function and the scalar one that finishes it round differently,
    and a row's result depends on its place in the step.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return activation(inputs); `inputs` is (..., features)."""
        if inputs.numel() <= _ROW_RUN:
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
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_packable(child):
                setattr(parent, name, PackedLinear(child))
                packed += 1
            elif isinstance(child, activations) and not isinstance(parent, RowRuns):
                setattr(parent, name, RowRuns(child))
    return packed


def _activation_types() -> tuple[type[nn.Module], ...]:
    entries = (entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values())
    return tuple(entry for entry in entries if isinstance(entry, type) and issubclass(entry, nn.Module))


def _is_packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
        and module.weight.dtype in (torch.float32, torch.bfloat16)
    )
