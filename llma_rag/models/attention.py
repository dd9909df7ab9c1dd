"""The attention of the fixed-shape passes, registered with transformers under the name `llma_rag`.

Grouped-query attention needs no copies of keys and values here: the query heads that share a key head
become rows of one attention over it. Masks are additive, always explicit, and built by the model itself
(causal, sliding or chunked) for the extent that the KV memory announces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from llma_rag.errors import UnsupportedModelError

NAME = "llma_rag"

# Arguments that models pass along and that do not change the result, or are in the mask already.
_WITHOUT_EFFECT = frozenset(
    {"cache_position", "is_causal", "output_attentions", "position_ids", "sliding_window", "use_cache"}
)


def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    """Return the mask (batch, 1, rows, view) that is 0 where a row may look and the dtype's minimum elsewhere.

    The minimum, not -inf: a padding row beyond the view may see nothing, and must not become NaN.
    """
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    visible = sdpa_mask(*args, **kwargs)
    assert visible is not None
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )


def folded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from (batch, heads, rows, dim) to (batch, key heads, view, dim); return (batch, rows, heads, dim).

    Raises:
        UnsupportedModelError: the model passes an argument that would change the result.
    """
    _refuse_unknown_arguments(module, attention_mask, kwargs)
    assert attention_mask is not None
    batch, heads, rows = query.shape[:3]
    key_heads = key.shape[1]
    groups = heads // key_heads
    folded = query.reshape(batch, key_heads, groups * rows, query.shape[3])
    mask = _folded_mask(attention_mask, groups)
    if softcap is None:
        attended = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        attended = _softcapped_attention(folded, key, value, mask, scaling, softcap)
    return attended.reshape(batch, heads, rows, value.shape[3]).transpose(1, 2).contiguous(), None


def _folded_mask(mask: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the mask repeated for each group of heads; all layers of a pass share the copy."""
    if groups == 1:
        return mask
    folded: dict[int, torch.Tensor] = mask.__dict__.setdefault("_llma_rag_folded", {})
    if groups not in folded:
        folded[groups] = mask.repeat(1, 1, groups, 1)
    return folded[groups]


def _softcapped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention with scores squashed to (-softcap, softcap), computed in fp32 (Gemma 2)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (
        torch.matmul(query.float(), key.float().transpose(2, 3)) * scale
    )  # (batch, key heads, rows, view)
    weights = torch.softmax(softcap * torch.tanh(scores / softcap) + mask.float(), dim=-1)
    return torch.matmul(weights, value.float()).to(query.dtype)


def _refuse_unknown_arguments(
    module: torch.nn.Module, mask: torch.Tensor | None, arguments: dict[str, Any]
) -> None:
    for name, argument in arguments.items():
        changes_result = isinstance(argument, torch.Tensor | int | float) and not isinstance(argument, bool)
        if changes_result and name not in _WITHOUT_EFFECT:
            raise UnsupportedModelError(
                f"{type(module).__name__} calls attention with {name!r}, which exact decoding does not support"
            )
    if mask is None or mask.dim() != 4:
        raise UnsupportedModelError(
            f"{type(module).__name__} calls attention without the mask that exact decoding needs"
        )


AttentionInterface.register(NAME, folded_attention)
AttentionMaskInterface.register(NAME, additive_mask)


@contextmanager
def implementations(config: PretrainedConfig, **internal: str | None) -> Iterator[None]:
    """Switch a model's `attn` or `experts` implementation for the passes inside, then restore it."""
    names = {f"_{kind}_implementation_internal": value for kind, value in internal.items()}
    before = {name: getattr(config, name) for name in names}
    try:
        for name, value in names.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
