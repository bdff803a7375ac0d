"""Many images through one client: in order, a little ahead, from many threads."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.client import Answer, Problem, RefusedError
from tests.faultyserver import ANSWER, ENTRY, Asked, error, reply, right, serving


def echo(asked: Asked) -> bytes | None:
    """The image's own bytes as its label; even numbers come later than odd ones."""
    if int(asked.body) % 2 == 0:
        time.sleep(0.005)
    return reply(200, {"model": "m1", "predictions": [{**ENTRY, "label": asked.body.decode()}]})(asked)


def labels(found: list[Answer | Problem]) -> list[str]:
    return [one.label if isinstance(one, Answer) else one.code for one in found]


def test_many_in_order_and_read_only_a_little_ahead() -> None:
    taken: list[int] = []

    def images() -> Iterator[bytes]:
        for number in range(40):
            taken.append(number)
            yield str(number).encode() if number != 5 else b""

    with serving(echo) as server, server.client() as client:
        answers = client.predict_many(images(), workers=3)
        first = next(answers)
        assert len(taken) == 6
        found = labels([first, *answers])
    assert found == [str(number) if number != 5 else "empty" for number in range(40)]
    assert server.connections <= 3
    assert len({asked.id for asked in server.asked}) == len(server.asked) == 39


def test_many_stop_at_a_refusal() -> None:
    with serving(right, error(401, "no_key")) as server, server.client() as client:
        answers = client.predict_many([b"image"] * 1000, workers=1)
        assert next(answers) == ANSWER
        with pytest.raises(RefusedError):
            list(answers)
    assert len(server.asked) < 10


def test_threads_share_a_client_and_get_their_own_answers() -> None:
    with serving(echo) as server, server.client(connections=2) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(client.predict, [str(number).encode() for number in range(64)]))
    assert labels(found) == [str(number) for number in range(64)]
    assert server.connections <= 2
