"""Batches without added waiting: who travels with whom, who hears of an exception, who is let go."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from serve.batching import Batcher, FullError

FORGOTTEN = 999


class Network:
    """Answers each item with itself and its companion; holds a batch until the test lets it go."""

    def __init__(self, held: bool = True) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.free = threading.Event()
        self.entered = threading.Semaphore(0)
        if not held:
            self.free.set()

    def run(self, companion: str, items: Sequence[int]) -> list[tuple[str, int]]:
        self.batches.append((companion, list(items)))
        self.entered.release()
        assert self.free.wait(30)
        if any(item < 0 for item in items):
            raise ValueError(f"no {min(items)}")
        return [(companion, item) for item in items if item != FORGOTTEN]

    async def busy(self) -> None:
        """Until it has begun another batch."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)


class Notes:
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.left: list[int] = []

    def batch(self, size: int, seconds: float) -> None:
        assert seconds >= 0
        self.sizes.append(size)

    def waiting(self, images: int) -> None:
        self.left.append(images)


Ours = Batcher[str, int, tuple[str, int]]
Test = Callable[[Network, Ours, Notes], Coroutine[Any, Any, None]]


def play(test: Test, *, size: int = 4, limit: int = 100, held: bool = True) -> Notes:
    network, notes = Network(held), Notes()
    batcher: Ours = Batcher(network.run, size=size, limit=limit, watcher=notes)

    async def within() -> None:
        try:
            await asyncio.wait_for(test(network, batcher, notes), 60)
        finally:
            network.free.set()
            batcher.close()

    asyncio.run(within())
    return notes


def submit(batcher: Ours, *items: int, companion: str = "a") -> "asyncio.Task[list[tuple[str, int]]]":
    return asyncio.ensure_future(batcher.submit(companion, items))


async def turn() -> None:
    """Let what was just submitted take its place."""
    await asyncio.sleep(0)


def test_an_idle_network_is_given_a_lone_item_at_once_and_a_busy_one_all_that_came_meanwhile() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        first = submit(batcher, 1)
        await network.busy()  # without company: nothing else was ever submitted
        others = [submit(batcher, item) for item in (2, 3, 4, 5, 6)]
        await turn()
        assert batcher.waiting == 5
        network.free.set()
        assert await first == [("a", 1)]
        assert await asyncio.gather(*others) == [[("a", item)] for item in (2, 3, 4, 5, 6)]
        assert network.batches == [("a", [1]), ("a", [2, 3, 4, 5]), ("a", [6])]

    notes = play(test)
    assert notes.sizes == [1, 4, 1]
    assert notes.left[-1] == 0


def test_a_request_larger_than_a_batch_comes_back_whole_and_in_order() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        assert await batcher.submit("a", range(11)) == [("a", item) for item in range(11)]
        assert [len(items) for _, items in network.batches] == [4, 4, 3]
        assert await batcher.submit("a", []) == []

    play(test, held=False)


def test_batches_begin_in_order_of_arrival_and_keep_to_one_companion() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        waiting = [submit(batcher, 0)]
        await network.busy()
        waiting += [submit(batcher, 1), submit(batcher, 2, companion="b"), submit(batcher, 3, companion="b")]
        waiting += [submit(batcher, 4), submit(batcher, 5, 6, 7, 8)]
        await turn()
        network.free.set()
        await asyncio.gather(*waiting)
        assert network.batches == [("a", [0]), ("a", [1]), ("b", [2, 3]), ("a", [4, 5, 6, 7]), ("a", [8])]

    play(test)


def test_an_exception_reaches_those_alone_whose_items_it_is_about() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        waiting = [submit(batcher, 0)]
        await network.busy()
        waiting += [submit(batcher, 1), submit(batcher, -2), submit(batcher, 3)]
        await turn()
        network.free.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [results[place] for place in (0, 1, 3)] == [[("a", 0)], [("a", 1)], [("a", 3)]]
        assert isinstance(results[2], ValueError)
        assert str(results[2]) == "no -2"

    play(test)


def test_a_request_that_fails_halfway_takes_the_rest_of_itself_out() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        failing = submit(batcher, 1, 2, 3, -4, 5, 6, 7, 8, 9)
        with pytest.raises(ValueError, match="no -4"):
            await failing
        assert await batcher.submit("a", [10]) == [("a", 10)]
        assert network.batches == [("a", [1, 2, 3, -4]), ("a", [10])]

    play(test, held=False)


def test_who_is_cancelled_gives_up_the_places_and_loses_nobody_else() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        running = submit(batcher, 0)
        await network.busy()
        gone, kept = submit(batcher, 1, 2), submit(batcher, 3)
        await turn()
        gone.cancel()
        running.cancel()  # its batch runs on, for nobody
        await turn()
        assert batcher.waiting == 1
        network.free.set()
        assert await kept == [("a", 3)]
        for one in (running, gone):
            with pytest.raises(asyncio.CancelledError):
                await one
        assert network.batches == [("a", [0]), ("a", [3])]

    play(test)


def test_more_than_may_wait_is_refused_at_once_but_nothing_for_its_own_size() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        waiting = [submit(batcher, 0)]
        await network.busy()
        waiting.append(submit(batcher, *range(1, 8)))  # more than the limit, but nothing else waits
        await turn()
        with pytest.raises(FullError, match="7 images wait"):
            await batcher.submit("a", [8])
        network.free.set()
        await asyncio.gather(*waiting)
        assert await batcher.submit("a", [9]) == [("a", 9)]

    play(test, limit=5)


def test_the_size_may_change_between_batches() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        await batcher.submit("a", range(4))
        batcher.size = 2
        await batcher.submit("a", range(4))
        assert [len(items) for _, items in network.batches] == [4, 2, 2]

    play(test, held=False)


def test_closing_lets_go_of_all_who_wait() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        running = submit(batcher, 0)
        await network.busy()
        waiting = submit(batcher, 1)
        await turn()
        batcher.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(RuntimeError, match="closed"):
            await batcher.submit("a", [2])
        network.free.set()
        assert await running == [("a", 0)]

    play(test)


def test_the_network_sees_how_long_it_has_been_busy() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        seen = [batcher.busy_since]
        running = submit(batcher, 0)
        await network.busy()
        seen.append(batcher.busy_since)
        network.free.set()
        await running
        assert seen[0] is None
        assert seen[1] is not None

    play(test)


def test_many_at_once_each_get_their_own() -> None:
    async def test(network: Network, batcher: Ours, notes: Notes) -> None:
        async def ask(first: int) -> None:
            for item in range(first, first + 50, 5):
                items = list(range(item, item + 5))
                assert await batcher.submit("ab"[first % 2], items) == [("ab"[first % 2], one) for one in items]

        await asyncio.gather(*(ask(first * 1000) for first in range(20)))
        assert sum(notes.sizes) == 20 * 50
        assert max(notes.sizes) <= 7

    play(test, size=7, limit=1000, held=False)


def test_it_serves_one_event_loop_after_another() -> None:
    network = Network(held=False)
    batcher: Ours = Batcher(network.run, size=4, limit=10, watcher=Notes())
    for item in range(3):
        assert asyncio.run(batcher.submit("a", [item])) == [("a", item)]
    batcher.close()


def test_a_network_that_answers_too_few_images_leaves_nobody_waiting() -> None:
    async def test(network: Network, batcher: Ours, _: Notes) -> None:
        others, forgotten = submit(batcher, 1, 2), submit(batcher, FORGOTTEN)
        assert await others == [("a", 1), ("a", 2)]
        with pytest.raises(RuntimeError, match="0 answers to 1 images"):
            await forgotten

    play(test, held=False)
