"""Loading a model and its tokenizer by hub name, local folder, GGUF file, or the demo model's name."""

from __future__ import annotations

import os
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
from llma_rag.workers import on_cpu_worker

_HUB_OPTIONS = frozenset(
    {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"}
)
_NOT_IN_MODEL_KWARGS = {
    "trust_remote_code": "no code that comes with a model is run",
    "use_safetensors": "weights are read from safetensors only",
    "attn_implementation": "exact decoding brings its own attention",
    "output_loading_info": "this library asks for it itself",
    "dtype": "use the argument dtype",
    "torch_dtype": "use the argument dtype",
}
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
    if device != "auto" and "device_map" in options:
        raise ModelError(f"device={device!r} and model_kwargs['device_map'] contradict each other; give one")
    chosen_device = _chosen_device(device)
    options["dtype"] = _chosen_dtype(dtype, chosen_device)
    source = _source(name, progress)
    progress(f"Loading {name}")
    return on_cpu_worker(_load, name, source, chosen_device, options, prepare_for_cpu)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, and nothing else of it.

    Raises:
        ModelError: it cannot be found, fetched or loaded.
    """
    source = _source(name, lambda _: None)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the readers of damaged files raise whatever they stumble over
        raise ModelError(f"the tokenizer of {name!r} cannot be loaded: {first_line(error)}") from error
    return tokenizer


def _load(
    name: str, source: str, device: torch.device, options: dict[str, Any], prepare_for_cpu: bool
) -> LoadedModel:
    hub_options = {option: value for option, value in options.items() if option in _HUB_OPTIONS}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **hub_options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # the readers of damaged files raise whatever they stumble over
        raise ModelError(
            f"the model {name!r} cannot be loaded: {first_line(error)} (a model is a hub name, a local "
            f"folder with safetensors, a .gguf file, or {DEMO_MODEL})"
        ) from error
    model, loading_info = loaded
    _require_complete(name, loading_info)
    if "device_map" not in options:
        torch.nn.Module.to(model, device)
    if prepare_for_cpu and model.device.type == "cpu":
        pack_for_cpu(model)
    return LoadedModel(name, model.eval(), tokenizer)


def _require_complete(name: str, loading_info: Mapping[str, Any]) -> None:
    """Refuse weights that would be random: transformers only logs that they are missing."""
    absent = sorted(
        str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading_info.get(kind) or ()
    )
    if absent:
        raise ModelError(
            f"the files of the model {name!r} lack {len(absent)} weights, such as {absent[0]}; "
            "is it a language model, and complete?"
        )


def _source(name: str, progress: Callable[[str], None]) -> str:
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - Path's own raises for an unknown user
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
    for name, remedy in _NOT_IN_MODEL_KWARGS.items():
        if name in options:
            raise ModelError(f"model_kwargs must not hold {name!r}: {remedy}")
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
