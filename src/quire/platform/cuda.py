"""An NVIDIA GPU as a device. Nothing here touches CUDA before a method is called."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from quire.config import MachineFacts
from quire.platform.base import Graph, Mark, Platform

ROOM_FOR_CAPTURE_BYTES = 4 * 2**30  # with less free, memory that torch keeps for later is given back before a capture


class CudaGraph:
    """A CUDA graph and the memory pool its temporaries live in."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph
        self.pool = graph.pool()

    def replay(self) -> None:
        self._graph.replay()

    def close(self) -> None:
        self._graph.reset()


class CudaMark:
    """An event on the current stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own gap
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()


class CudaPlatform(Platform):
    """The first visible GPU; CUDA_VISIBLE_DEVICES chooses which that is, until the first call."""

    name = "cuda"
    backends = ("cuda", "triton", "torch")

    @classmethod
    def present(cls) -> bool:
        return torch.cuda.is_available()

    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def facts(self) -> MachineFacts:
        free, total = torch.cuda.mem_get_info(0)
        dtypes = (
            ("bfloat16", "float16", "float32")
            if torch.cuda.get_device_capability(0) >= (8, 0)
            else ("float16", "float32")
        )
        return MachineFacts("cuda", torch.cuda.get_device_name(0), total, free, dtypes)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def mark(self) -> Mark:
        return CudaMark()

    def supports_graphs(self) -> bool:
        return True

    @cached_property
    def _capture_stream(self) -> torch.cuda.Stream:
        # One for all graphs: memory that a library allocates for a stream is then allocated once.
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own gap

    def capture_graph(self, work: Callable[[], None], pool: Any = None) -> Graph:
        # The first run compiles kernels and creates library handles, which may not happen during a capture.
        work()
        if torch.cuda.mem_get_info(0)[0] < ROOM_FOR_CAPTURE_BYTES:  # nothing can be given back while capturing
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._capture_stream):
            # Other threads of the process may go on using CUDA meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return CudaGraph(graph)

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_reserved()

    def empty_cache(self) -> None:
        clear_workspaces = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear_workspaces is not None:  # scratch memory of matrix products, tens of MiB a stream
            clear_workspaces()
        torch.cuda.empty_cache()
