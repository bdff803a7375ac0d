"""Limits on how often and on how many at once, in memory, for one replica."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

BURST: Final = 2.0
"""What a key may take at once, in seconds of its rate."""


class Buckets:
    """A token bucket for each name: it fills with `rate` tokens a second up to `BURST * rate`, a request takes one.

    Only names of known keys come here, so the operator's key file bounds the memory.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._filled: dict[str, tuple[float, float]] = {}

    def take(self, name: str, rate: float) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one. `rate` is > 0.

        The rate is given each time because it may change while the endpoint runs.
        """
        now = self._clock()
        most = max(1.0, BURST * rate)
        tokens, then = self._filled.get(name, (most, now))
        tokens = min(most, tokens + (now - then) * rate)
        enough = tokens >= 1
        self._filled[name] = (tokens - 1 if enough else tokens, now)
        return 0.0 if enough else (1 - tokens) / rate


class Room:
    """A number of places, of which each caller in need gets one or is told at once that there is none."""

    def __init__(self, places: int) -> None:
        self.free = places

    @contextlib.contextmanager
    def place(self) -> Iterator[bool]:
        """Whether there was a place; it is kept until the block ends, however it ends."""
        if not self.enter():
            yield False
            return
        try:
            yield True
        finally:
            self.leave()

    def enter(self) -> bool:
        """Whether there was a place; it is kept until `leave`."""
        if self.free <= 0:
            return False
        self.free -= 1
        return True

    def leave(self) -> None:
        self.free += 1


class Recent:
    """Counts what happens up to a number within a span of seconds; remembers no more than that number of moments."""

    def __init__(self, most: int, within_s: float, clock: Callable[[], float]) -> None:
        self._within_s = within_s
        self._clock = clock
        self._moments: deque[float] = deque(maxlen=most)

    def too_many(self) -> bool:
        """Note one more, and say whether the allowed number had happened within the span before it."""
        now = self._clock()
        full = len(self._moments) == self._moments.maxlen and now - self._moments[0] <= self._within_s
        self._moments.append(now)
        return full


def retry_after(seconds: float) -> dict[str, str]:
    """The header that asks a client to come back after this time, in whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
