"""Verify steps over fixed tensors: recorded once per shape and view, as a CUDA graph, then replayed with new ids.

A replay launches a whole step at once, where launching its thousands of kernels one by one takes longer than
running them. Everything but the recording is plain torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

Run = Callable[[], torch.Tensor]
Record = Callable[[Run], Run]  # from what computes a pass to what computes it again from the same tensors

_recording = threading.Lock()  # one recording at a time, whichever model's
_WARM_UPS = 2  # runs before a recording, in which kernels are chosen and workspaces allocated


class StaticSteps:
    """Steps by width and view, each with its own input tensor.

    Args:
        compute: from inputs (candidates + 2, rows), each candidate's ids, positions and slots, and a view, to logits
            (candidates, rows, vocab).
        device: where the inputs are.
        record: records a pass.
    """

    def __init__(
        self, compute: Callable[[torch.Tensor, int], torch.Tensor], device: torch.device, record: Record
    ) -> None:
        self._compute = compute
        self._device = device
        self._record = record
        self._steps: dict[tuple[int, int], tuple[torch.Tensor, Run]] = {}

    def __call__(
        self, candidates: Sequence[Sequence[int]], positions: Sequence[int], slots: Sequence[int], view: int
    ) -> torch.Tensor:
        """Return the logits (candidates, rows, vocab) of a step."""
        given = torch.tensor([*candidates, positions, slots])
        key = (len(positions), view)
        if key not in self._steps:
            inputs = given.to(self._device)
            self._steps[key] = inputs, self._record(lambda: self._compute(inputs, view))
        inputs, run = self._steps[key]
        inputs.copy_(given)
        return run().clone()  # the next replay writes where this one has written


def cuda_graphs(device: torch.device) -> Record:
    """Return what records passes as CUDA graphs of a device that share their memory."""
    with torch.cuda.device(device):
        pool = torch.cuda.graph_pool_handle()

    def record(run: Run) -> Run:
        with _recording, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                result = run()

        def replay() -> torch.Tensor:
            with torch.cuda.device(device):
                graph.replay()
            return result

        return replay

    return record
