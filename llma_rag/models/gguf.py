"""GGUF files, dequantised once to fp32 safetensors: a GGUF takes half a minute to read, its copy a second.

The copy keeps the dequantised values as they are, four bytes each, and loads in any dtype.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from llma_rag.errors import ModelError
from llma_rag.files import cache_folder
from llma_rag.workers import on_cpu_worker


def convert_once(
    target: Path, fetch: Callable[[Path], Path], progress: Callable[[str], None] = lambda _: None
) -> Path:
    """Return `target`, a folder that transformers loads, converting the GGUF file that `fetch` returns.

    `fetch` is given a scratch folder. One process converts while others wait; the folder appears under
    its name only when complete, so a process that is killed leaves nothing but scratch files, which the
    next one removes.
    """
    if target.is_dir():
        return target
    with FileLock(f"{target}.lock"):  # released by the system when its holder dies
        if target.is_dir():
            return target
        for leftover in target.parent.glob(f"{target.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
        try:
            gguf = fetch(scratch)
            converted = scratch / "converted"
            progress("Converting the model to safetensors (once)")
            on_cpu_worker(_convert, gguf, converted)
            converted.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def converted_gguf(path: Path, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder with the converted copy of a GGUF file on disk."""
    status = path.stat()
    identity = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    name = f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return convert_once(cache_folder("models") / name, lambda _: path, progress)


def _convert(gguf: Path, target: Path) -> None:
    _require_gguf_extras()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        quantised = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    except Exception as error:  # the readers of damaged files raise whatever they stumble over
        raise ModelError(f"{gguf} cannot be read as a GGUF model: {first_line(error)}") from error
    config = quantised.config
    del config.quantization_config  # the weights are plain by now, and saving them would be refused
    with torch.device("meta"):
        model: Any = type(quantised)(config)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.generation_config = quantised.generation_config
    model.save_pretrained(target, safe_serialization=True)
    tokenizer.save_pretrained(target)


def _require_gguf_extras() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"reading GGUF files needs {' and '.join(missing)}; install them with `pip install 'llma-rag[demo]'`"
        )


def first_line(error: BaseException) -> str:
    """Return an exception's message as one line, for a message that quotes it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
