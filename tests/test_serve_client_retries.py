"""The client tries again what can be tried again, with pauses, and gives up in time."""

import contextlib
import socket
import threading

import pytest

from serve.client import Client, Retry, UnavailableError
from tests.faultyserver import ANSWER, Asked, Turn, cut, drop, error, plain, reply, right, serving


@pytest.mark.parametrize(
    "trouble",
    [drop, cut, *(plain(status) for status in (408, 429, 500, 502, 503, 504)), error(503, "not_ready")],
)
def test_what_can_be_tried_again_is_tried_again_under_the_same_id(trouble: Turn) -> None:
    retries: list[Retry] = []
    with serving(trouble, trouble, right) as server, server.client(on_retry=retries.append) as client:
        assert client.predict(b"image") == ANSWER
    assert len(server.asked) == 3
    assert len({asked.id for asked in server.asked}) == 1
    assert {asked.body for asked in server.asked} == {b"image"}
    assert [one.attempt for one in retries] == [1, 2]
    assert {one.kind for one in retries} == {"connection" if trouble in (drop, cut) else "status"}


def test_a_connection_that_was_closed_while_idle_is_opened_again() -> None:
    with serving(right, drop, right) as server, server.client() as client:
        assert [client.predict(b"image"), client.predict(b"image")] == [ANSWER, ANSWER]
    assert server.connections == 2


def test_pauses_grow_with_jitter_and_retry_after_is_honoured_up_to_a_cap() -> None:
    pauses: list[float] = []
    turns = [plain(503), plain(503), plain(429, "", "retry-after: 7"), plain(429, "", "retry-after: 4000"), drop]
    soon = [plain(429, "", "retry-after: Wed, 21 Oct 2026 07:28:00 GMT"), right]
    with serving(*turns, *soon) as server, server.client(sleep=pauses.append, timeout_s=600) as client:
        client.predict(b"image")
    bounds = [(0.05, 0.1), (0.1, 0.2), (7, 7), (30, 30), (0.8, 1.6), (1.6, 3.2)]
    assert all(low <= pause <= high for pause, (low, high) in zip(pauses, bounds, strict=True))


def test_tries_end() -> None:
    with serving(plain(503, "no replica")) as server, server.client(retries=3, timeout_s=600) as client:
        with pytest.raises(UnavailableError, match="no replica") as caught:
            client.predict(b"image")
        assert caught.value.status == 503
    assert len(server.asked) == 4


def test_time_ends_the_tries_that_nobody_has_counted() -> None:
    """README promises a minute; fewer tries would end it sooner."""
    pauses: list[float] = []
    with (
        serving(plain(503)) as server,
        server.client(sleep=pauses.append, timeout_s=600) as client,
        pytest.raises(UnavailableError),
    ):
        client.predict(b"image")
    assert sum(pauses) > 60


def test_a_pause_that_would_outlast_the_deadline_is_not_made() -> None:
    turn = plain(429, "full", "retry-after: 20")
    with serving(turn) as server, server.client(timeout_s=10) as client, pytest.raises(UnavailableError):
        client.predict(b"image")
    assert len(server.asked) == 1


def test_a_server_that_says_nothing_or_little_does_not_keep_us() -> None:
    gone = threading.Event()

    def silent(_: Asked) -> None:
        gone.wait(30)

    def dripping(asked: Asked) -> None:
        asked.send(reply(200, "x" * 10**7)(asked)[:100_000])
        with contextlib.suppress(OSError):  # until the client hangs up
            while not gone.wait(0.05):  # each piece sets back a socket's own timeout
                asked.send(b"x" * 70_000)

    for turn in (silent, dripping):
        gone.clear()
        with serving(turn) as server, server.client(timeout_s=0.2) as client:
            with pytest.raises(UnavailableError) as caught:
                client.predict(b"image")
            assert caught.value.code == "no_connection"
            gone.set()


def test_nobody_listens() -> None:
    with socket.socket() as probe:  # bound and not listening: nobody else gets this port
        probe.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{probe.getsockname()[1]}", retries=2, sleep=lambda _: None)
        with pytest.raises(UnavailableError, match="is the endpoint up") as caught:
            client.predict(b"image")
        assert caught.value.status == 0
