"""What a signed request may take before it is proven: a bounded body, few at a time, and slower guesses."""

import asyncio

from starlette.types import Message

from serve.door.access import Guarded
from serve.door.keystore import Keys
from tests.asgicalls import Inner, call
from tests.doors import Config
from tests.signing import PATH, SECRET, door, keys, never, send, signed

__all__ = ["keys"]


def test_the_limits_of_a_body_hold_at_the_door(keys: Keys) -> None:
    app = door(keys, Config(max_body_bytes=100, body_timeout_s=0.05))
    assert send(app, signed(body=b"x" * 100)).status == 200
    reply = send(app, signed(body=b"x" * 101))
    assert (reply.status, reply.code) == (413, "body_too_large")
    announced = signed().with_header("content-length", "101")
    reply = asyncio.run(call(app, "POST", PATH, announced.headers, receive=never))
    assert (reply.status, reply.code) == (413, "body_too_large")

    async def slow() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    reply = asyncio.run(call(app, "POST", PATH, signed().headers, receive=slow))
    assert (reply.status, reply.code) == (408, "body_timeout")

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    assert asyncio.run(call(app, "POST", PATH, signed().headers, receive=gone)).status == 0


def test_slow_bodies_of_who_knows_a_name_are_bounded_and_harm_no_bearer_key(keys: Keys) -> None:
    async def scenario() -> None:
        app = door(keys, unproven=3)
        stalled = asyncio.Event()

        async def stalling() -> Message:
            await stalled.wait()
            return {"type": "http.disconnect"}

        bad = signed(secret="guessed")
        calls = [asyncio.ensure_future(call(app, "POST", PATH, bad.headers, receive=stalling)) for _ in range(50)]
        while sum(one.done() for one in calls) < 47:
            await asyncio.sleep(0)
        refused = [one.result() for one in calls if one.done()]
        assert {(reply.status, reply.code) for reply in refused} == {(429, "too_many_uploads")}
        assert {reply.headers["x-amzn-errortype"] for reply in refused} == {"ThrottlingException"}
        bearer = [("authorization", f"Bearer {SECRET}")]
        assert (await call(app, "POST", "/predict", bearer)).status == 200
        stalled.set()
        await asyncio.gather(*calls)
        good = signed()
        assert (await call(app, "POST", PATH, good.headers, body=good.body)).status == 200

    asyncio.run(scenario())


def test_wrong_signatures_are_slowed_like_wrong_keys_and_drain_nobodys_rate(keys: Keys) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    app = Guarded(Inner(), keys, lambda: Config(rate_limit=0.5), clock=lambda: 5.0, sleep=sleep)
    for number in range(15):
        assert send(app, signed(secret="guessed") if number % 2 else signed(key_id="bob")).status == 403
    assert waits == [1.0] * 5
    assert send(app, signed()).status == 200
    limited = send(app, signed())
    assert (limited.status, limited.code, limited.headers["retry-after"]) == (429, "rate_limited", "2")
    assert limited.headers["x-amzn-errortype"] == "ThrottlingException"
