"""Times: when things happened to one request, and how its whole time divides."""

from dataclasses import dataclass


@dataclass
class Times:
    """Seconds of the monotonic clock; None = not yet. Of a request with several sequences, the first and the last of them.

    started_s      the engine took it from the queue
    last_output_s  the engine's latest output came
    interruptions  times that it came back to an engine: after a preemption, or to a new engine
    waited_s       spent without a place in an engine by then
    redone_s       spent computing again what had been there
    """

    submitted_s: float
    started_s: float | None = None
    first_token_s: float | None = None
    last_output_s: float | None = None
    interruptions: int = 0
    waited_s: float = 0.0
    redone_s: float = 0.0
    _back_s: float | None = None
    _lost_before_first_s: float = 0.0

    def admitted(self, now: float, num_sequences: int) -> None:
        """The engine takes it from the queue. Several sequences are admitted one by one, so there a second time means nothing."""
        if self.started_s is None:
            self.started_s = now
        elif num_sequences == 1:
            self.interruptions += 1
            self.waited_s += now - max(self.started_s, self.last_output_s or 0.0, self._back_s or 0.0)
            self._back_s = now

    def came(self, now: float, num_tokens: int) -> None:
        """An output came."""
        self.redone_s += self._pending_s(now)
        self._back_s = None
        self.last_output_s = now
        if self.first_token_s is None and num_tokens:
            self.first_token_s = now
            self._lost_before_first_s = self.waited_s + self.redone_s

    def parts(self, end_s: float, ended: bool) -> dict[str, float]:
        """How the time from submission until end_s divides; sums to it."""
        started = end_s if self.started_s is None else self.started_s
        first = end_s if self.first_token_s is None else self.first_token_s
        resting = ended and self._back_s is None
        last = max(self.last_output_s or first, first) if resting else end_s
        redone = self.redone_s + self._pending_s(last)
        lost = self.waited_s + redone
        lost_before = lost if self.first_token_s is None else self._lost_before_first_s
        return {
            "queue": started - self.submitted_s,
            "prefill": first - started - lost_before,
            "decode": last - first - (lost - lost_before),
            "interrupted": self.waited_s,
            "recompute": redone,
            "stream": end_s - last,
        }

    def _pending_s(self, now: float) -> float:
        return 0.0 if self._back_s is None else now - self._back_s
