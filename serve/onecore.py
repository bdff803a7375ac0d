"""The two threads that a replica works in, event loop and network, on one core while the network is light.

Python runs one thread at a time, so two that are busy hand its lock to and fro. Between two cores each time costs a
wake-up and cold caches: with eight requests at once at a tiny network a quarter of the replica's CPU, with 32 a tenth
(benchmarks/onecore.py). A heavy network works without that lock, and is left a core of its own.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

LIGHT_S: Final = 0.0015
"""CPU seconds an image, decoding included, below which a network is light."""
_TIED_S: Final = 2.0
_LOOSE_S: Final = 0.05
"""How long the system may move the two as it likes, before they are tied again where the event loop has come to lie."""


class OneCore:
    """Ties the two threads together, and every two seconds sees whether that is still right, and on which core.

    `on` may be changed at any time: false for a replica that was given several cores, and where a GPU does the work.
    Where a thread cannot be tied (macOS, Windows, one core only) nothing happens.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.on = False
        self._clock = clock
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        self._loop = 0
        self._tied = False
        self._images, self._seconds = 0, 0.0
        self._next = clock() + _TIED_S

    def on_the_loop(self) -> None:
        """This thread is the event loop's."""
        self._loop = threading.get_native_id()

    def ran(self, images: int, seconds: float) -> None:
        """This thread is the network's: it took so many CPU seconds for so many images."""
        self._images += images
        self._seconds += seconds
        now = self._clock()
        if now < self._next or len(self._cores) < 2 or not self._loop:
            return
        light = self.on and self._seconds < LIGHT_S * self._images
        self._images, self._seconds = 0, 0.0
        self._next = now + _TIED_S
        with contextlib.suppress(OSError):  # the loop's thread has ended, or a sandbox forbids it
            if self._tied:
                self._place(self._cores)
                self._tied = False
                self._next = now + (_LOOSE_S if light else _TIED_S)
            elif light:
                self._place({_core_of(self._loop)})
                self._tied = True

    def release(self) -> None:
        """This thread is neither: it was begun by one of them, and may have been given its core."""
        if len(self._cores) > 1:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._cores)

    def _place(self, cores: set[int]) -> None:
        for thread in (self._loop, 0):
            os.sched_setaffinity(thread, cores)


def _core_of(thread: int) -> int:
    """Where a thread of this process ran last: field 39 of /proc/PID/stat (proc(5)), whose second may hold spaces."""
    fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return int(fields[39 - 3])
