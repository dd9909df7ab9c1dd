"""Which versions of vLLM there is a proposer for, and how their model runners tell it of requests."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, Protocol

SUPPORTED_VERSIONS = ("0.32", "0.33")
_RUNNER_MODULE = "vllm.v1.worker.gpu_model_runner"  # the runner for CPUs inherits from this one

_log = logging.getLogger("vllm.llma_rag")  # vLLM shows what is below its own name


class RequestObserver(Protocol):
    """Hears which requests a model runner has."""

    def update(self, requests: Any, batch: Any) -> None:
        """Take the runner's requests by id, and its batch, whose `req_ids` are the rows' ids."""


def register() -> None:
    """Say at a server's start whether its version of vLLM is supported; vLLM calls this as a plug-in, in every process."""
    try:
        require_supported_version()
    except RuntimeError as error:
        _log.warning("%s", error)


def require_supported_version() -> None:
    """Raise RuntimeError where the version of vLLM is not one of `SUPPORTED_VERSIONS`."""
    import vllm

    found = str(vllm.__version__)
    if not any(found == version or found.startswith(f"{version}.") for version in SUPPORTED_VERSIONS):
        raise RuntimeError(
            f"llma_rag drafts in vLLM {' and '.join(SUPPORTED_VERSIONS)}, this is {found}; install one of those, or leave "
            "--speculative-config out"
        )


def observe_running_class() -> None:
    """Have the model runners of this process tell their proposers of requests.

    Called while a runner makes its proposer, so its module is there.
    """
    observe(sys.modules[_RUNNER_MODULE].GPUModelRunner)


def observe(runner_class: type) -> None:
    """Wrap the method with which a class of model runners begins every step, once."""
    begin_step: Callable[..., Any] = runner_class._update_states  # type: ignore[attr-defined]
    if hasattr(begin_step, "_tells_llma_rag"):
        return

    @functools.wraps(begin_step)
    def and_tell(runner: Any, *args: Any, **kwargs: Any) -> Any:
        result = begin_step(runner, *args, **kwargs)
        try:
            update = getattr(getattr(runner, "drafter", None), "update", None)
            if update is not None:
                update(runner.requests, runner.input_batch)
        except Exception:  # the server goes on; what is unknown of its requests drafts nothing
            _log.exception("llma_rag was not told of requests")
        return result

    and_tell._tells_llma_rag = True  # type: ignore[attr-defined]
    runner_class._update_states = and_tell  # type: ignore[attr-defined]
