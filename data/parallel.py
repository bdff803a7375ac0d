"""Threads over a long list: results in order, and never more than a few of them in memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """`work` on each item by `workers` threads, results in the order of the items.

    At most `2 * workers` items are under way or waiting to be taken: `Executor.map` would start them all, and 40,000
    decoded frames do not fit into memory. The first exception ends it; what has not begun is dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="eagleray-data")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
