"""Batches without added waiting: a free network takes what waits, a busy one lets it gather."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

With = TypeVar("With")
Item = TypeVar("Item")
Result = TypeVar("Result")


class FullError(Exception):
    """More waits than may wait: the caller should come back later."""


class Watcher(Protocol):
    """What is told about the batches. Called on the event loop."""

    def batch(self, size: int, seconds: float) -> None: ...

    def waiting(self, images: int) -> None: ...


class _Request(Generic[With, Item, Result]):
    """The items of one caller, and what has become of them."""

    def __init__(self, run_with: With, items: Sequence[Item], future: "asyncio.Future[list[Result]]") -> None:
        self.run_with = run_with
        self.items = items
        self.future = future
        self.taken = 0
        self.results: list[Result] = []


Part = tuple[_Request[With, Item, Result], Sequence[Item]]


class Batcher(Generic[With, Item, Result]):
    """Runs `run(run_with, items) -> results` in one thread, on as many items as wait and at most `size`.

    The thread takes the next batch the moment it has ended one, without a turn of the event loop in between. Nothing
    is ever held back to wait for company: at low load an item travels alone and at once, at high load what arrived
    while the network was busy fills the next batch. (`ray.serve.batch` hands over a batch while the network still
    works on the last one; without a waiting time its items then travel alone however many there are.)

    Items of one batch all have the same `run_with`. `size` may be changed at any time.
    """

    def __init__(
        self, run: Callable[[With, Sequence[Item]], list[Result]], *, size: int, limit: int, watcher: Watcher
    ) -> None:
        self.size = size
        self.limit = limit
        """Most items that may wait. A request is never refused for its own size: when nothing waits it is taken."""
        self.busy_since: float | None = None
        """`time.monotonic()` at the start of the batch that runs now."""
        self._run = run
        self._watcher = watcher
        self._requests: deque[_Request[With, Item, Result]] = deque()
        self._waiting = 0
        self._closed = False
        self._resting = False
        # Guards the four above: they are changed by the event loop and by the thread.
        self._changing = threading.Lock()
        # What wakes the thread that rests. Written in C, unlike `threading.Condition`.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return self._waiting

    async def submit(self, run_with: With, items: Sequence[Item]) -> list[Result]:
        """One result for each item, in order. FullError when too many wait; an exception of `run` for these items.

        A caller that is cancelled gives up its places; items that are in a batch already are run, for nobody.
        """
        if not items:
            return []
        loop = asyncio.get_running_loop()
        request: _Request[With, Item, Result] = _Request(run_with, items, loop.create_future())
        with self._changing:
            if self._closed:
                raise RuntimeError("this batcher is closed")
            if self._waiting and self._waiting + len(items) > self.limit:
                raise FullError(f"{self._waiting} images wait already")
            if self._loop is not loop:
                self._start(loop)
            self._requests.append(request)
            self._waiting += len(items)
            self._rouse()
        try:
            return await request.future
        except asyncio.CancelledError:
            self._withdraw(request)
            raise

    def close(self) -> None:
        """Let the thread end after the batch it works on. Callers that still wait are cancelled."""
        with self._changing:
            self._closed = True
            left = list(self._requests)
            self._requests.clear()
            self._waiting = 0
            self._rouse()
        for request in left:
            request.future.cancel()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread starts with the first request: a replica's object may be made where no loop runs yet."""
        if self._loop is None:
            threading.Thread(target=self._work, name="predict", daemon=True).start()
        self._loop = loop

    def _rouse(self) -> None:
        if self._resting:
            self._resting = False
            self._wake.put(None)

    def _withdraw(self, request: _Request[With, Item, Result]) -> None:
        with self._changing, contextlib.suppress(ValueError):  # taken as a whole by now
            self._requests.remove(request)
            self._waiting -= len(request.items) - request.taken

    def _work(self) -> None:
        while (parts := self._take()) is not None:
            begin = time.monotonic()
            self.busy_since = begin
            done = self._run_parts(parts)
            self.busy_since = None
            size, seconds = sum(len(items) for _, items in parts), time.monotonic() - begin
            del parts
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all who wait
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._deliver, done, size, seconds)
            del done

    def _take(self) -> list[Part[With, Item, Result]] | None:
        """Wait for work; the next batch in order of arrival. None once closed."""
        while True:
            with self._changing:
                if self._requests:
                    return self._next_batch()
                if self._closed:
                    return None
                self._resting = True
            self._wake.get()

    def _next_batch(self) -> list[Part[With, Item, Result]]:
        parts: list[Part[With, Item, Result]] = []
        room = self.size
        run_with = self._requests[0].run_with
        while room and self._requests and self._requests[0].run_with is run_with:
            request = self._requests[0]
            items = request.items[request.taken : request.taken + room]
            request.taken += len(items)
            room -= len(items)
            self._waiting -= len(items)
            parts.append((request, items))
            if request.taken == len(request.items):
                self._requests.popleft()
        return parts

    def _run_parts(self, parts: list[Part[With, Item, Result]]) -> list[tuple[Any, list[Result] | Exception]]:
        """What each request gets. When the batch fails, each request is tried alone: only the guilty one is told."""
        run_with = parts[0][0].run_with
        together = [item for _, items in parts for item in items]
        try:
            results = self._run(run_with, together)
            if len(results) != len(together):  # else somebody would wait for ever, or take another's answer
                raise RuntimeError(f"{len(results)} answers to {len(together)} images")
        except Exception as error:
            if len(parts) == 1:
                self._withdraw(parts[0][0])
                return [(parts[0][0], error)]
            return [one for part in parts for one in self._run_parts([part])]
        shares: list[tuple[Any, list[Result] | Exception]] = []
        start = 0
        for request, items in parts:
            shares.append((request, results[start : start + len(items)]))
            start += len(items)
        return shares

    def _deliver(self, done: list[tuple[Any, list[Result] | Exception]], size: int, seconds: float) -> None:
        """On the event loop: answer the callers whose last item this batch held."""
        for request, outcome in done:
            if request.future.done():
                continue
            if isinstance(outcome, Exception):
                request.future.set_exception(outcome)
                continue
            request.results += outcome
            if len(request.results) == len(request.items):
                request.future.set_result(request.results)
        self._watcher.batch(size, seconds)
        self._watcher.waiting(self._waiting)
