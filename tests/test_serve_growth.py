"""Replicas follow the load: one more under it, never more than allowed, one again after it; no request is lost."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data.images import encode_png
from serve.client import Answer, Client, ClientError
from serve.promotion.serveapi import ServeApi, ray_token
from serve.running.starting import APPLICATION
from tests.commands import PATIENCE_S
from tests.served import KEY, Served, served

pytestmark = pytest.mark.ray

CROWD, LIMIT = 12, 2
SETTINGS = {
    "min-replicas": 1,
    "max-replicas": LIMIT,
    # A replica is wanted for each request under way, so the crowd asks for at least four from one replica, for eight
    # from two; and four fit on one core, so that nothing but the limit keeps them away.
    "max-ongoing-requests": 4,
    "cpus-per-replica": 0.25,
    "upscale-s": 1,
    "idle-s": 1,
    "shutdown-s": 1,
    "log": "all",
}
ENOUGH = 20
"""Requests that a replica has answered, to say that it takes part."""


class Crowd:
    """Threads that ask through one client, each request under an id of its own."""

    def __init__(self, client: Client) -> None:
        self._client, self._numbers = client, itertools.count()
        self._picture = encode_png(np.zeros((1500, 1500, 3), np.uint8))  # small to send, slow to decode: they pile up
        self.answered: list[str] = []
        self.lost: list[str] = []

    @contextlib.contextmanager
    def asking(self, threads: int, pause_s: float = 0) -> Iterator[None]:
        ended = threading.Event()

        def ask() -> None:
            while not ended.wait(pause_s):
                name = f"request-{next(self._numbers)}"
                try:
                    answer = self._client.predict(self._picture, request_id=name)
                    (self.answered if isinstance(answer, Answer) else self.lost).append(name)
                except ClientError as error:
                    self.lost.append(f"{name}: {error}")

        crowd = [threading.Thread(target=ask) for _ in range(threads)]
        for thread in crowd:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in crowd:
                thread.join()


class Replicas:
    """What becomes of an endpoint's replicas; looked at again and again."""

    def __init__(self, running: Served) -> None:
        self._running = running
        self._api = ServeApi(running.note.dashboard, ray_token())

    def look(self) -> set[int]:
        """The process ids of those that are there, never too many. Ray's own count has also those that it wants."""
        known, there = self._api.application(APPLICATION), self._running.replicas()
        assert max(len(known.replicas) + known.starting, len(there)) <= LIMIT, (known, there)
        return there

    def until(self, wanted: Callable[[set[int]], bool], what: str) -> set[int]:
        deadline = time.monotonic() + PATIENCE_S
        while not wanted(there := self.look()):
            assert time.monotonic() < deadline, f"not {what}: {there}"
            time.sleep(0.2)
        return there

    def answered_by(self, pid: int) -> set[str]:
        """The ids of the requests that a replica has answered 200, from its log. It need not live any more."""
        (file,) = Path(self._running.note.session_dir, "logs").glob(f"worker-*-{pid}.err")
        found = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        return {line["request_id"] for line in found if line.get("status") == 200 and "request_id" in line}


@pytest.fixture
def running(tiny_bundle: str) -> Iterator[Served]:
    """An endpoint that may grow, of which nothing is left afterwards."""
    settings = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    with served("--bundle", tiny_bundle, *settings) as endpoint:
        yield endpoint
        endpoint.command.ctrl_c()
        assert endpoint.command.end() == 0
        endpoint.until_gone()


def test_it_grows_to_its_limit_under_load_and_shrinks_after_it_and_loses_no_request(running: Served) -> None:
    replicas = Replicas(running)
    (first,) = replicas.until(lambda there: len(there) == 1, "one at the start")

    def both_answer(there: set[int]) -> bool:
        return len(there) == LIMIT and all(len(replicas.answered_by(pid)) >= ENOUGH for pid in there)

    with Client(running.note.url, KEY, timeout_s=PATIENCE_S, connections=CROWD) as client:
        crowd = Crowd(client)
        with crowd.asking(CROWD):
            two = replicas.until(both_answer, "two that answer under load")
        with crowd.asking(1, pause_s=0.05):  # somebody still asks while the other one goes
            replicas.until(lambda there: len(there) == 1, "one after the load")
    assert first in two
    assert crowd.lost == []
    assert set.union(*(replicas.answered_by(pid) for pid in two)) >= set(crowd.answered)
