"""A CPU whose graphs are functions: captured work runs again when it is replayed, so that loops for graphs can be tried without a GPU."""

from collections.abc import Callable
from typing import Any

from quire.platform.cpu import CpuPlatform


class Recording:
    """A captured piece of work."""

    pool = "pool"

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work

    def close(self) -> None:
        return


class RecordingPlatform(CpuPlatform):
    """It captures by keeping the function."""

    def supports_graphs(self) -> bool:
        return True

    def capture_graph(self, work: Callable[[], None], pool: Any = None) -> Recording:
        work()
        return Recording(work)
