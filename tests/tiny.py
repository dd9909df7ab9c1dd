"""Tiny random models of every architecture that must run, and a tiny tokenizer trained on the spot."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 300
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

# name: (configuration class, what differs from the common settings)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 40}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 40, "query_pre_attn_scalar": 16, "tie_word_embeddings": False},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 40, "query_pre_attn_scalar": 16, "tie_word_embeddings": False},
    ),
    "phi3": ("Phi3Config", {}),
    "mixtral": ("MixtralConfig", _MOE),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 16, **_MOE}),
    "gpt2": ("GPT2Config", {"n_positions": 1024}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {}),
}
PROMISED = tuple(ARCHITECTURES)[:9]  # the others are their relatives, tested in fp32 only


def tiny_model(
    architecture: str, dtype: torch.dtype = torch.float32, *, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """Return a tiny model with random weights, the same for the same arguments."""
    class_name, differing = ARCHITECTURES[architecture]
    settings = {**_COMMON, **differing, **overrides}
    if architecture == "gpt2":
        settings = {
            "n_embd": settings["hidden_size"],
            "n_layer": settings["num_hidden_layers"],
            "n_head": settings["num_attention_heads"],
            **{
                name: settings[name]
                for name in settings
                if not name.startswith(("hidden", "num", "inter", "max"))
            },
        }
    torch.manual_seed(seed)
    config = getattr(transformers, class_name)(**settings)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


TEXT = """The museum opens at nine and closes at five. The museum shop closes half an hour earlier.
Visitors may bring water, but no food, into the galleries. Photography without flash is allowed.
Où est la gare? Die Öffnungszeiten ändern sich täglich. 温度は二十度です。 Crème brûlée costs 7 €. 🙂
def open(path): return path.read_text()
Groups of more than ten people book in advance. Groups pay at the desk. Children under six enter free.
"""
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a ChatML template, like those of Llama 3, Qwen and SmolLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=_TEMPLATE
    )


@functools.cache
def sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer with byte fallback that strips the first space, like those of Llama 2 and Gemma."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT.encode("ascii", "ignore").decode()], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
