"""The event loop's thread and the network's, on one core while the network is light."""

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from serve.onecore import LIGHT_S, OneCore

ALL = os.sched_getaffinity(0) if sys.platform.startswith("linux") else set[int]()
pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="there is one core, or threads cannot be tied to one")
LIGHT, HEAVY = LIGHT_S / 2, LIGHT_S * 2


class Other:
    """A thread that does what it is asked to: the event loop's place is not the test's own thread."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while (ask := self._asked.get()) is not None:
            ask()

    def does(self, what: Callable[[], None]) -> None:
        done = threading.Event()

        def do() -> None:
            what()
            done.set()

        self._asked.put(do)
        assert done.wait(10)

    def cores(self) -> set[int]:
        assert self._thread.native_id is not None
        return os.sched_getaffinity(self._thread.native_id)

    def end(self) -> None:
        self._asked.put(None)
        self._thread.join()


@pytest.fixture
def other() -> Iterator[Other]:
    made = Other()
    yield made
    made.end()
    os.sched_setaffinity(0, ALL)


class Clock:
    """Stands where it is put."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def begun(other: Other, *, on: bool = True) -> tuple[OneCore, Clock]:
    clock = Clock()
    cores = OneCore(clock)
    cores.on = on
    other.does(cores.on_the_loop)
    return cores, clock


def after(clock: Clock, seconds: float, cores: OneCore, each: float, images: int = 10) -> None:
    """A batch that ends so much later."""
    clock.now += seconds
    cores.ran(images, images * each)


def test_a_light_network_shares_its_core_with_the_event_loop_and_moves_along_with_it(other: Other) -> None:
    cores, clock = begun(other)
    after(clock, 0.1, cores, LIGHT)
    assert other.cores() == ALL  # not before it has been seen for a while
    after(clock, 2, cores, LIGHT)
    assert len(other.cores()) == 1
    assert other.cores() == os.sched_getaffinity(0)
    after(clock, 1, cores, LIGHT)
    assert len(other.cores()) == 1
    after(clock, 1, cores, LIGHT)
    assert other.cores() == os.sched_getaffinity(0) == ALL  # the system may choose another core
    after(clock, 0.1, cores, LIGHT)
    assert len(other.cores() | os.sched_getaffinity(0)) == 1


def test_a_heavy_network_has_a_core_of_its_own_also_when_it_comes_after_a_light_one(other: Other) -> None:
    cores, clock = begun(other)
    after(clock, 3, cores, HEAVY)
    assert other.cores() == os.sched_getaffinity(0) == ALL
    after(clock, 3, cores, LIGHT)
    assert len(other.cores()) == 1
    after(clock, 3, cores, HEAVY)
    assert other.cores() == os.sched_getaffinity(0) == ALL
    after(clock, 3, cores, HEAVY)
    assert other.cores() == ALL


def test_a_replica_with_several_cores_or_a_gpu_keeps_them(other: Other) -> None:
    cores, clock = begun(other, on=False)
    after(clock, 3, cores, LIGHT)
    assert other.cores() == os.sched_getaffinity(0) == ALL
    cores.on = True
    after(clock, 3, cores, LIGHT)
    assert len(other.cores()) == 1
    cores.on = False  # the model is moved to a GPU
    after(clock, 3, cores, LIGHT)
    assert other.cores() == os.sched_getaffinity(0) == ALL


def test_a_thread_that_one_of_them_begins_is_set_free(other: Other) -> None:
    cores, clock = begun(other)
    after(clock, 3, cores, LIGHT)
    seen: list[set[int]] = []

    def load() -> None:
        seen.append(os.sched_getaffinity(0))
        cores.release()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert len(seen[0]) == 1
    assert seen[1] == ALL


def test_where_it_is_not_allowed_nothing_breaks(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_thread: int, _cores: set[int]) -> None:
        raise PermissionError

    cores, clock = begun(other)
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    after(clock, 3, cores, LIGHT)
    cores.release()
    monkeypatch.undo()
    assert other.cores() == ALL
