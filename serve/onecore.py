"""CPU affinity: the event loop's thread and the network's are pinned to one core while the network is light.

Python runs one thread at a time, so two that are busy hand its lock to and fro. Between two cores each time costs a
wake-up and cold caches: with eight requests at once at a tiny network a quarter of the replica's CPU, with 32 a tenth
(benchmarks/onecore.py). A heavy network works without that lock most of the time, so there the system may spread them.
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
_PINNED_S: Final = 2.0
_FREE_S: Final = 0.05
"""How long the system may move the two as it likes, before they are pinned again where the event loop has come to
lie."""


class OneCore:
    """Pins the two threads, and looks again at the first batch that ends two seconds later: is it still right, and on
    which core?

    `on` may be changed at any time and counts from that look on: false where the network has several threads or a GPU,
    and where two models answer. Where threads cannot be pinned (macOS, Windows, one core only) nothing happens.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.on = False
        self._clock = clock
        self._all = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        self._pinned = set[int]()
        self._loop = 0
        self._images, self._seconds = 0, 0.0
        self._next = clock() + _PINNED_S

    def set_loop_thread(self) -> None:
        """The thread that calls is the event loop's."""
        self._loop = threading.get_native_id()

    def note_batch(self, images: int, seconds: float) -> None:
        """The thread that calls is the network's: it took so many CPU seconds for so many images."""
        self._images += images
        self._seconds += seconds
        now = self._clock()
        if now < self._next or len(self._all) < 2 or not self._loop:
            return
        light = self.on and self._seconds < LIGHT_S * self._images
        self._images, self._seconds = 0, 0.0
        self._next = now + _PINNED_S
        if self._pinned:
            self.unpin()
            self._next = now + (_FREE_S if light else _PINNED_S)
        elif light:
            self._pin()

    def unpin(self) -> None:
        """Free the two, and whatever they have started meanwhile: a new thread inherits the core of its parent."""
        pinned, self._pinned = self._pinned, set()
        if not pinned:
            return
        for thread in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(OSError):  # it has ended, or a sandbox forbids it
                if os.sched_getaffinity(thread) == pinned:
                    os.sched_setaffinity(thread, self._all)

    def _pin(self) -> None:
        # The answers are there already: nothing that goes wrong here may cost them.
        with contextlib.suppress(OSError, ValueError, IndexError):
            core = {_core_of(self._loop)}
            self._pinned = core
            for thread in (self._loop, 0):
                os.sched_setaffinity(thread, core)


def _core_of(thread: int) -> int:
    """Where a thread of this process ran last: field 39 of /proc/PID/stat (proc(5)), whose second may hold spaces."""
    fields = Path(f"/proc/self/task/{thread}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[39 - 3])
