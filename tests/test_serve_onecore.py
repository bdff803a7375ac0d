"""The event loop's thread and the network's, on one core while the network is light."""

import asyncio
import gc
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from models.bundle import BundleInfo, read_info
from models.predictor import Prediction
from serve.endpoint import Answer, Endpoint, Image
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
    other.does(cores.set_loop_thread)
    return cores, clock


def after(clock: Clock, seconds: float, cores: OneCore, each: float, images: int = 10) -> None:
    """A batch that ends so much later."""
    clock.now += seconds
    cores.note_batch(images, images * each)


def test_it_goes_to_where_the_event_loop_lies(other: Other) -> None:
    cores, clock = begun(other)
    for core in ALL:
        # The core that the event loop has just been on, and not the network's.
        other.does(partial(os.sched_setaffinity, 0, {core}))
        after(clock, 2, cores, LIGHT)
        assert other.cores() == os.sched_getaffinity(0) == {core}
        after(clock, 2, cores, LIGHT)
    assert other.cores() == os.sched_getaffinity(0) == ALL


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


def test_a_heavy_network_is_left_to_the_system_also_when_it_comes_after_a_light_one(other: Other) -> None:
    cores, clock = begun(other)
    after(clock, 3, cores, HEAVY)
    assert other.cores() == os.sched_getaffinity(0) == ALL
    after(clock, 3, cores, LIGHT)
    assert len(other.cores()) == 1
    after(clock, 3, cores, HEAVY)
    assert other.cores() == os.sched_getaffinity(0) == ALL
    after(clock, 3, cores, HEAVY)
    assert other.cores() == ALL


def test_where_it_is_turned_off_both_are_freed(other: Other) -> None:
    cores, clock = begun(other, on=False)
    after(clock, 3, cores, LIGHT)
    assert other.cores() == os.sched_getaffinity(0) == ALL
    cores.on = True
    after(clock, 3, cores, LIGHT)
    assert len(other.cores()) == 1
    cores.on = False  # the model is moved to a GPU
    after(clock, 3, cores, LIGHT)
    assert other.cores() == os.sched_getaffinity(0) == ALL


def test_threads_that_were_started_meanwhile_are_freed_with_the_two(other: Other) -> None:
    """A pool's thread lives as long as the process, and inherits the core of the thread that starts it."""
    cores, clock = begun(other)
    after(clock, 3, cores, LIGHT)
    pooled = Other()  # by the network's thread
    own = Other()
    own.does(lambda: os.sched_setaffinity(0, {next(iter(ALL - pooled.cores()))}))  # chosen by somebody for a reason
    chosen = own.cores()
    assert pooled.cores() == other.cores()
    assert len(pooled.cores()) == 1
    after(clock, 3, cores, HEAVY)
    found = pooled.cores(), own.cores()
    pooled.end()
    own.end()
    assert found == (ALL, chosen)


def test_it_goes_on_without_an_event_loop_that_has_ended(other: Other) -> None:
    ended = Other()
    cores, clock = begun(ended)
    after(clock, 3, cores, LIGHT)
    assert len(os.sched_getaffinity(0)) == 1
    ended.end()
    after(clock, 3, cores, LIGHT)
    assert os.sched_getaffinity(0) == ALL
    after(clock, 3, cores, LIGHT)
    assert os.sched_getaffinity(0) == ALL
    other.does(cores.set_loop_thread)
    after(clock, 3, cores, LIGHT)
    assert len(os.sched_getaffinity(0)) == 1


def test_where_it_is_not_allowed_nothing_breaks(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_thread: int, _cores: set[int]) -> None:
        raise PermissionError

    cores, clock = begun(other)
    with monkeypatch.context() as sandbox:
        sandbox.setattr(os, "sched_setaffinity", forbidden)
        after(clock, 3, cores, LIGHT)
        after(clock, 3, cores, LIGHT)
        cores.unpin()
    after(clock, 3, cores, LIGHT)
    assert len(other.cores() | os.sched_getaffinity(0)) == 1
    after(clock, 3, cores, LIGHT)
    assert other.cores() == os.sched_getaffinity(0) == ALL


class Model:
    """Takes so many CPU seconds for an image."""

    def __init__(self, info: BundleInfo, each: float) -> None:
        self.info, self._each = info, each

    def predict(self, images: Sequence[Image]) -> list[Answer]:
        end = time.thread_time() + self._each * len(images)
        while time.thread_time() < end:
            pass
        count = len(self.info.classes)
        return [Prediction("crab", 1 / count, (1 / count,) * count, confident=None) for _ in images]


@pytest.mark.parametrize(
    ("changed", "each", "shared"),
    [
        ({}, 0.0, True),
        ({}, HEAVY, False),
        ({"one_core": False}, 0.0, False),
        ({"threads": 2}, 0.0, False),
        ({"candidate": {"bundle": "new", "promotion": "p"}}, 0.0, False),
    ],
    ids=["light", "heavy", "off", "several-threads", "promotion"],
)
def test_an_endpoint_shares_a_core_while_its_one_network_is_light_and_frees_it_at_its_end(
    changed: dict[str, Any], each: float, shared: bool, tiny_bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.onecore._PINNED_S", 0.0)
    info = read_info(tiny_bundle)
    seen: list[set[int]] = []

    async def run() -> None:
        endpoint = Endpoint(lambda _: Model(info, each))
        await endpoint.reconfigure({"bundle": "old", "threads": 1, **changed})
        await endpoint.predict([b"a picture"], "id")
        seen.append(os.sched_getaffinity(0))
        endpoint.close()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=lambda: asyncio.run(run()))  # whatever becomes of it, not the tests' own
    thread.start()
    thread.join()
    assert [len(cores) == 1 for cores in seen] == [shared, False]
    assert seen[1] == ALL


def test_a_batchers_thread_does_not_keep_an_endpoint_that_nobody_closed(tiny_bundle: str) -> None:
    info = read_info(tiny_bundle)

    async def run() -> "weakref.ref[Model]":
        model = Model(info, 0.0)
        endpoint = Endpoint(lambda _: model)
        await endpoint.reconfigure({"bundle": "old"})
        await endpoint.predict([b"a picture"], "id")
        return weakref.ref(model)

    left = asyncio.run(run())
    gc.collect()
    assert left() is None
