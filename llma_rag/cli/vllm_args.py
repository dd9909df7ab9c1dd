"""What to start vLLM's server with, so that it drafts from references."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from llma_rag.cli.app import DEMO_MODEL
from llma_rag.errors import ModelError

_PROPOSER = "llma_rag.vllm.ReferenceProposer"


def server_arguments(model: str, drafted: int) -> str:
    """Return the arguments of vLLM's server, quoted for a shell.

    Args:
        model: hub name or local folder.
        drafted: most ids per draft.

    Raises:
        ModelError: vLLM does not read such a model.
    """
    folder = Path(model)
    if not model or model.lower() == DEMO_MODEL or model.endswith(".gguf"):
        raise ModelError(
            f"vLLM reads hub names and folders, got {model!r}; examples/vllm/save_model.py saves the demo model as a folder"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no folder of a model: it has no config.json")
    speculation = {"method": "custom_class", "model": _PROPOSER, "num_speculative_tokens": drafted}
    return shlex.join([model, "--speculative-config", json.dumps(speculation)])
