"""The threads that run models: one for everything on the CPU, one per model elsewhere.

On the CPU, each thread that runs torch brings a pool of helper threads. As soon as the pools together
have more threads than there are cores, OpenMP stops its helpers from waiting actively, and every
operation pays for waking them: a forward pass then takes a third longer. So loading, embedding and
decoding on the CPU share one thread, and concurrent requests queue for it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_NAME = "llma-rag"
_by_model: WeakKeyDictionary[object, ThreadPoolExecutor] = WeakKeyDictionary()
_lock = threading.Lock()


@functools.cache
def cpu_worker() -> ThreadPoolExecutor:
    """Return the thread that does all work on the CPU."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=_NAME)


def worker_for(model: object, device_type: str) -> ThreadPoolExecutor:
    """Return the one thread that runs this model; off the CPU it ends with the model."""
    if device_type == "cpu":
        return cpu_worker()
    with _lock:
        if model not in _by_model:
            _by_model[model] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=_NAME)
        return _by_model[model]


def on_cpu_worker(
    function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Call a function in the CPU's thread and return its result, or raise what it raised."""
    if threading.current_thread().name.startswith(_NAME):
        return function(*args, **kwargs)  # it is there already, and must not wait for itself
    return cpu_worker().submit(function, *args, **kwargs).result()
