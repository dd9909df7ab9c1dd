"""Which architectures can be decoded exactly: decoders whose layers keep keys and values per position."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from llma_rag.errors import UnsupportedModelError

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


def require_supported(model: PreTrainedModel) -> None:
    """Refuse a model that fixed-shape steps would decode wrongly.

    Rejected drafts are rolled back by overwriting their slots. A recurrent state has no slots, and many
    such models decode without an error, and wrongly.

    Raises:
        UnsupportedModelError: names the model type and the reason.
    """
    config = model.config.get_text_config(decoder=True)
    reason = _reason_against(model, config)
    if reason is not None:
        raise UnsupportedModelError(
            f"models of type {model.config.model_type!r} cannot be decoded exactly: {reason}; "
            "use a decoder-only transformer such as Llama, Mistral, Qwen, Gemma or Phi"
        )


def _reason_against(model: PreTrainedModel, config: PretrainedConfig) -> str | None:
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if model._is_stateful:
        return "it keeps a recurrent state"
    other = sorted(set(_layer_types(config)) - _LAYER_TYPES)
    if other:
        return f"it has layers of type {', '.join(other)}"
    if not model.can_generate():
        return "it is not a language model that generates"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "it is an encoder"
    if not model._can_set_attn_implementation():
        return "its attention cannot be exchanged"
    return None


def _layer_types(config: PretrainedConfig) -> list[str]:
    layer_types, _ = get_layer_types_and_kwargs(config)
    return list(layer_types)


def sliding_layers(config: PretrainedConfig) -> list[bool]:
    """Return for each layer whether its attention is limited to a window."""
    return [layer_type == "sliding_attention" for layer_type in _layer_types(config)]


def context_limit(config: PretrainedConfig) -> int | None:
    """Return the most positions the model can hold, None where its configuration names no limit.

    Rotary embeddings of the types `dynamic` and `longrope` change with the length reached; such a model
    is limited to the length before the change.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in rope.values() if isinstance(value, dict)]
    limits = [getattr(config, "max_position_embeddings", None)] + [
        parameters.get("original_max_position_embeddings")
        for parameters in (rope, *by_layer_type)
        if parameters.get("rope_type") in _LENGTH_DEPENDENT_ROPE
    ]
    known = [limit for limit in limits if limit]
    return min(known) if known else None
