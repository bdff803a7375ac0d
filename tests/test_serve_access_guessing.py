"""Wrong keys are slowed: whoever guesses waits, and nobody with a right key does."""

import asyncio
import gc
import logging
from collections.abc import Callable

import pytest
from starlette.types import Message

from serve.door.keystore import Keys
from tests.asgicalls import call
from tests.clocks import Clock
from tests.doors import RIGHT, WRONG, guarded, keys

__all__ = ["keys"]


class Sleeper:
    """Sleeps that last until the test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.wake = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.wake.wait()


async def settled(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


def test_a_thousand_wrong_keys_are_slowed_and_right_ones_are_not(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        app = guarded(keys, sleep=sleeper)
        calls = [asyncio.ensure_future(call(app, "POST", "/predict", WRONG)) for _ in range(1000)]
        await settled(lambda: sum(one.done() for one in calls) == 992)
        replies = [one.result() for one in calls if one.done()]
        assert [reply.status for reply in replies[:10]] == [403] * 10
        assert {(reply.status, reply.code) for reply in replies[10:]} == {(429, "too_many_wrong_keys")}
        assert {reply.headers["retry-after"] for reply in replies[10:]} == {"1"}
        assert sleeper.asked == [1.0] * 8  # as few as leave a replica's places to the right keys
        for _ in range(100):
            assert (await call(app, "POST", "/predict", RIGHT)).status == 200
        assert sleeper.asked == [1.0] * 8
        sleeper.wake.set()
        late = await asyncio.gather(*(one for one in calls if not one.done()))
        assert {(reply.status, reply.code) for reply in late} == {(403, "wrong_key")}

    with caplog.at_level(logging.DEBUG, logger="eagleray"):
        asyncio.run(scenario())
    assert len(caplog.records) == 1
    assert "wrong keys" in caplog.text
    assert "er_wrong" not in caplog.text


def test_after_ten_quiet_seconds_a_wrong_key_is_answered_at_once_again(keys: Keys) -> None:
    async def scenario() -> None:
        clock, sleeper = Clock(), Sleeper()
        sleeper.wake.set()
        app = guarded(keys, clock=clock, sleep=sleeper)
        for _ in range(12):
            assert (await call(app, "POST", "/predict", WRONG)).status == 403
        assert len(sleeper.asked) == 2
        clock.now += 10.1
        for _ in range(10):
            assert (await call(app, "POST", "/predict", WRONG)).status == 403
        assert len(sleeper.asked) == 2

    asyncio.run(scenario())


def test_requests_without_a_key_do_not_count_as_wrong_ones(keys: Keys) -> None:
    async def scenario() -> None:
        app = guarded(keys, sleep=Sleeper())  # who sleeps here would sleep for ever
        for _ in range(100):
            assert (await call(app, "POST", "/predict")).status == 401
        assert (await call(app, "POST", "/predict", WRONG)).status == 403

    asyncio.run(scenario())


def test_clients_that_leave_while_they_wait_leave_their_places(keys: Keys) -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        app = guarded(keys, sleep=sleeper)
        for _ in range(10):
            await call(app, "POST", "/predict", WRONG)
        for round_ in range(1, 4):
            calls = [asyncio.ensure_future(call(app, "POST", "/predict", WRONG)) for _ in range(8)]
            await settled(lambda asked=8 * round_: len(sleeper.asked) == asked)  # type: ignore[misc]
            for one in calls:
                one.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_what_is_sent_during_a_pause_is_thrown_away(keys: Keys) -> None:
    async def scenario() -> None:
        sleeper, taken = Sleeper(), 0

        async def flood() -> Message:
            nonlocal taken
            taken += 1
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b"x" * 65536, "more_body": True}

        app = guarded(keys, sleep=sleeper)
        for _ in range(10):
            await call(app, "POST", "/predict", WRONG)
        one = asyncio.ensure_future(call(app, "POST", "/predict", WRONG, receive=flood))
        await settled(lambda: taken > 500)
        sleeper.wake.set()
        assert (await one).status == 403
        before = taken
        await asyncio.sleep(0.01)
        assert taken == before

    asyncio.run(scenario())


def test_a_client_that_is_gone_during_its_pause_harms_nobody(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        app = guarded(keys, sleep=lambda _: asyncio.sleep(0.001))

        async def gone() -> Message:
            return {"type": "http.disconnect"}

        async def broken() -> Message:
            raise ConnectionError("the server's own trouble")

        for receive in [gone, broken] * 10:
            assert (await call(app, "POST", "/predict", WRONG, receive=receive)).status == 403

    asyncio.run(scenario())
    gc.collect()
    assert "never retrieved" not in caplog.text
