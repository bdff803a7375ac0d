"""What is refused while it still comes in: its sender gets the answer, and no more of the server's time than is due."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import httpx
from starlette.types import Message, Receive, Scope, Send

from serve.door.unread import ReadOn
from tests.asgicalls import body_of, call, scope_of
from tests.protocols import on_loopback

ANSWER = b"not today"
CHUNK = b"10000\r\n" + bytes(65536) + b"\r\n"


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads the first piece of a body, and answers."""
    await receive()
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": ANSWER})


def posted(app: ReadOn, *pieces: bytes, pause_s: float = 0.0) -> list[Message | bytes]:
    """What happens, in order: the pieces that are read, and what is sent."""
    seen: list[Message | bytes] = []
    body = body_of(pieces)

    async def receive() -> Message:
        if pause_s and any(seen):
            await asyncio.sleep(pause_s)
        message = await body()
        seen.append(message["body"])
        return message

    async def send(message: Message) -> None:
        seen.append(message)

    asyncio.run(app(scope_of("POST", "/predict"), receive, send))
    return seen


def test_what_was_read_or_is_there_already_changes_nothing_of_the_answer() -> None:
    for pieces in ((b"a",), (b"a", b"b", b"c")):
        *read, start, last = posted(ReadOn(refusing), *pieces)
        assert read == list(pieces)
        assert isinstance(start, dict)
        assert start["headers"] == [(b"content-length", b"9")]
        assert last == {"type": "http.response.body", "body": ANSWER}


def test_the_answer_goes_out_whole_before_the_rest_is_read_and_the_connection_closes_after_it() -> None:
    first, start, answer, *rest, last = posted(ReadOn(refusing), b"a", b"b", b"c", pause_s=0.01)
    assert (first, rest) == (b"a", [b"b", b"c"])
    assert isinstance(start, dict)
    assert start["headers"][-1] == (b"connection", b"close")
    assert answer == {"type": "http.response.body", "body": ANSWER, "more_body": True}
    assert last == {"type": "http.response.body", "body": b"", "more_body": False}


def test_the_rest_is_waited_for_only_so_long() -> None:
    first, _, _, *rest, last = posted(ReadOn(refusing, linger_s=0.1), b"a", b"b", b"c", b"d", pause_s=0.06)
    assert (first, rest) == (b"a", [b"b"])
    assert last == {"type": "http.response.body", "body": b"", "more_body": False}


def test_only_so_many_are_waited_for_at_once() -> None:
    read = 0

    async def trickling() -> Message:
        nonlocal read
        await asyncio.sleep(0.01)
        read += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def scenario() -> list[int]:
        app = ReadOn(refusing, linger_s=30, at_once=2)
        waiting = [asyncio.create_task(call(app, "POST", "/", receive=trickling)) for _ in range(2)]
        await asyncio.sleep(0.1)
        before = read
        late = [await call(app, "POST", "/", receive=trickling) for _ in range(3)]
        assert not any(one.done() for one in waiting)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert read > before > 2
        # The two have given their places back.
        again = asyncio.create_task(call(app, "POST", "/", receive=trickling))
        await asyncio.sleep(0.1)
        assert not again.done()
        again.cancel()
        return [one.status for one in late]

    assert asyncio.run(scenario()) == [403, 403, 403]


def test_a_client_that_goes_away_meanwhile_is_not_waited_for() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"a", "more_body": True}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    reply = asyncio.run(call(ReadOn(refusing, linger_s=30), "POST", "/", receive=receive))
    assert (reply.status, reply.body) == (403, ANSWER)


def test_who_sends_all_before_reading_gets_the_answer() -> None:
    """As most clients do. Without reading on, the server resets the connection, and the answer is lost with it."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(65536)

    with on_loopback(ReadOn(refusing)) as url:
        for _ in range(20):
            assert httpx.post(url, content=bytes(6 * 2**20)).content == ANSWER

        async def chunked() -> bytes:
            async with httpx.AsyncClient() as client:
                return (await client.post(url, content=pieces())).content

        for _ in range(20):
            assert asyncio.run(chunked()) == ANSWER


def test_who_never_stops_sending_is_cut_off() -> None:
    with on_loopback(ReadOn(refusing, linger_s=0.2)) as url:
        caller = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30)
        with caller, contextlib.suppress(ConnectionError):
            caller.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
            end = time.monotonic() + 30
            while time.monotonic() < end:
                caller.sendall(CHUNK)
            raise AssertionError("it was let send for 30 s")
