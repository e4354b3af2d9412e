"""Who goes first: the order of sequences, and the queue that keeps it."""

import heapq
from collections.abc import Callable

from quire.core.sequence import Sequence, Status

Order = Callable[[Sequence], tuple[int, int]]


def by_arrival(sequence: Sequence) -> tuple[int, int]:
    """fcfs: the first to come goes first."""
    return (0, sequence.seq_id)


def by_priority(sequence: Sequence) -> tuple[int, int]:
    """priority: the lowest Request.priority goes first, equal ones by arrival."""
    return (sequence.request.priority, sequence.seq_id)


ORDERS: dict[str, Order] = {"fcfs": by_arrival, "priority": by_priority}


class WaitingQueue:
    """Waiting sequences in order. A preempted one returns to its old place, before all that came after it.

    Push and pop cost O(log n). `discard` costs O(1) on average: the dead entry stays until it comes up, or until half
    of the heap is dead.

    num_requests  requests whose first sequence waits
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._num_alive = 0
        self.num_requests = 0

    def __len__(self) -> int:
        return self._num_alive

    def push(self, sequence: Sequence) -> None:
        """Takes in a sequence and marks it waiting."""
        sequence.status = Status.WAITING
        heapq.heappush(self._heap, (self._order(sequence), sequence))
        self._count(sequence, 1)

    def peek(self) -> Sequence | None:
        """The sequence that goes next, or None."""
        while self._heap and self._heap[0][1].status is not Status.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self, status: Status) -> None:
        """Removes the sequence that `peek` returned and gives it its new status."""
        sequence = heapq.heappop(self._heap)[1]
        sequence.status = status
        self._count(sequence, -1)

    def discard(self, sequence: Sequence) -> None:
        """Removes a sequence that waited, from wherever it is. The caller has given it another status."""
        self._count(sequence, -1)
        if len(self._heap) > 2 * self._num_alive + 16:
            self._heap = [entry for entry in self._heap if entry[1].status is Status.WAITING]
            heapq.heapify(self._heap)

    def _count(self, sequence: Sequence, change: int) -> None:
        self._num_alive += change
        if sequence.index == 0:  # a request with n sequences is one in the queue
            self.num_requests += change
