"""Loading a model and its tokenizer by hub name, local folder, GGUF file, or the demo model's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llma_rag.errors import ModelError
from llma_rag.models.demo_model import DEMO_MODEL, demo_model_folder
from llma_rag.models.gguf import converted_gguf, first_line
from llma_rag.models.linears import cpu_computes_in_bf16, pack_for_cpu

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer, under the name by which it was asked for."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    model_kwargs: Mapping[str, Any] | None = None,
    prepare_for_cpu: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> LoadedModel:
    """Load a model from safetensors, running no code that comes with it.

    Args:
        name: a hub name, a local folder, a GGUF file, or `smollm2-135m`.
        device: `auto` (CUDA where there is one, else the CPU) or a torch device.
        dtype: `auto` (bfloat16 where the device computes in it, else float32) or a dtype's name.
        model_kwargs: handed to `from_pretrained`, for example `quantization_config` or `device_map`.
        prepare_for_cpu: on the CPU, replace linear layers by packed ones; other devices are not concerned.
        progress: told what is going on when it takes long.

    Raises:
        ModelError: the model cannot be found, fetched or loaded, or an option is not allowed.
    """
    options = _checked_options(model_kwargs)
    chosen_device = _chosen_device(device)
    options.setdefault("dtype", _chosen_dtype(dtype, chosen_device))
    source = _source(name, progress)
    progress(f"Loading {name}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"the model {name!r} cannot be loaded: {first_line(error)} (a model is a hub name, a local "
            f"folder with safetensors, a .gguf file, or {DEMO_MODEL})"
        ) from error
    if "device_map" not in options:
        torch.nn.Module.to(model, chosen_device)
    if prepare_for_cpu and model.device.type == "cpu":
        pack_for_cpu(model)
    _use_full_precision(model)
    return LoadedModel(name, model.eval(), tokenizer)


def _source(name: str, progress: Callable[[str], None]) -> str:
    path = Path(name).expanduser()
    if name == DEMO_MODEL:
        return str(demo_model_folder(progress))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file {path}")
        return str(converted_gguf(path, progress))
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"there is no folder {path}")
    return name


def _checked_options(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    options = dict(model_kwargs or {})
    for name in ("trust_remote_code", "use_safetensors", "attn_implementation"):
        if name in options:
            raise ModelError(f"model_kwargs must not hold {name!r}: this library sets it itself")
    return options


def _chosen_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device must be 'auto' or a torch device, got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r} was asked for, but torch finds no CUDA device; use 'auto' or 'cpu'"
        )
    return chosen


def _chosen_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if _computes_in_bf16(device) else torch.float32
    if dtype not in _DTYPES:
        raise ModelError(f"dtype must be 'auto', {', '.join(map(repr, _DTYPES))}, got {dtype!r}")
    return _DTYPES[dtype]


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_computes_in_bf16()


def _use_full_precision(model: PreTrainedModel) -> None:
    """Keep fp32 products in fp32: TF32 rounds them to ten bits of mantissa."""
    if model.device.type == "cuda" and model.dtype == torch.float32:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
