"""Wall and CPU seconds of a command with everything that it starts: Ray's daemons and workers are its descendants.

The kernel forgets the CPU time of processes that nobody waits for, and Ray waits for none of its workers; so the tree
is looked at every tenth of a second, and each process counts with the last that was seen of it.
"""

import os
import subprocess
import threading
import time
from collections.abc import Sequence

import psutil

_EVERY_S = 0.1


class Watch:
    """While it is open, adds up what the descendants of a process use. `cpu_seconds` holds the sum so far."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._known: dict[tuple[int, float], psutil.Process] = {}
        self._seconds: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        return sum(self._seconds.values())

    def _follow(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            tree = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        for process in tree:
            self._known[process.pid, process.create_time()] = process
        for key, process in list(self._known.items()):  # those whose parent died are followed too
            try:
                times = process.cpu_times()
                self._seconds[key] = times.user + times.system
            except psutil.NoSuchProcess:
                del self._known[key]


def timed(command: Sequence[str], *, env: dict[str, str] | None = None, cwd: str | None = None) -> tuple[float, float]:
    """Run a command; its wall and CPU seconds. CalledProcessError with its output where it fails."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env or dict(os.environ), cwd=cwd
    )
    with Watch(process.pid) as watch:
        printed, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed)
    return time.monotonic() - start, watch.cpu_seconds
