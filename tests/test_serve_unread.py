"""What is refused while it still comes in: its sender gets the answer, and no more of the server's time than is due."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from serve.door.unread import ReadOn
from tests.asgicalls import Headers, Reply, body_of, call, scope_of
from tests.protocols import on_loopback

ANSWER = b"not today"
CHUNK = b"10000\r\n" + bytes(65536) + b"\r\n"


CHUNKED = [("transfer-encoding", "chunked")]


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads the first piece of a body, and answers with the status that the path names."""
    await receive()
    status = int(scope["path"][1:] or 403)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": ANSWER})


def posted(app: ReadOn, *pieces: bytes, headers: Headers = CHUNKED, path: str = "/403") -> list[Message | bytes]:
    """What happens, in order: the pieces that are read, and what is sent."""
    seen: list[Message | bytes] = []
    body = body_of(pieces)

    async def receive() -> Message:
        message = await body()
        seen.append(message["body"])
        return message

    async def send(message: Message) -> None:
        seen.append(message)

    asyncio.run(app(scope_of("POST", path, headers), receive, send))
    return seen


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [
        ([b"a"], CHUNKED),  # read to its end
        ([b"a", b"b"], [("content-length", "2")]),  # the server throws away what is left
        ([b"a", b"b"], [("content-length", str(2**26))]),
        ([b"a", b"b"], []),
    ],
)
def test_what_was_read_or_will_end_changes_nothing_of_the_answer(pieces: list[bytes], headers: Headers) -> None:
    first, start, last = posted(ReadOn(refusing), *pieces, headers=headers)
    assert first == b"a"
    assert isinstance(start, dict)
    assert start["headers"] == [(b"content-length", b"9")]
    assert last == {"type": "http.response.body", "body": ANSWER}


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/403", CHUNKED), ("/413", [("content-length", str(2**26 + 1))]), ("/408", [("content-length", "9")])],
)
def test_of_what_may_never_end_the_answer_goes_out_whole_and_the_rest_is_read_before_the_connection_closes(
    path: str, headers: Headers
) -> None:
    first, start, answer, *rest, last = posted(ReadOn(refusing), b"a", b"b", b"c", headers=headers, path=path)
    assert (first, rest) == (b"a", [b"b", b"c"])
    assert isinstance(start, dict)
    assert start["headers"][-1] == (b"connection", b"close")
    assert answer == {"type": "http.response.body", "body": ANSWER, "more_body": True}
    assert last == {"type": "http.response.body", "body": b"", "more_body": False}


async def trickling() -> Message:
    await asyncio.sleep(0.01)
    return {"type": "http.request", "body": b"x", "more_body": True}


def test_the_rest_is_waited_for_only_so_long() -> None:
    waited = call(ReadOn(refusing, linger_s=0.1), "POST", "/", CHUNKED, receive=trickling)
    assert asyncio.run(asyncio.wait_for(waited, 20)).body == ANSWER


def test_only_so_many_are_waited_for_at_once() -> None:
    async def answer(app: ReadOn) -> Reply:
        return await asyncio.wait_for(call(app, "POST", "/", CHUNKED, receive=trickling), 20)

    async def scenario() -> None:
        app = ReadOn(refusing, linger_s=300, at_once=2)
        waiting = [asyncio.create_task(call(app, "POST", "/", CHUNKED, receive=trickling)) for _ in range(2)]
        await asyncio.sleep(0.1)
        late = [await answer(app) for _ in range(3)]
        assert not any(one.done() for one in waiting)
        assert ["connection" in one.headers for one in late] == [False] * 3  # the server reads on by itself
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        again = asyncio.create_task(answer(app))  # they have given their places back
        await asyncio.sleep(0.1)
        assert not again.done()
        again.cancel()

    asyncio.run(scenario())


def test_a_client_that_goes_away_meanwhile_is_not_waited_for() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"a", "more_body": True}]

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return messages.pop() if messages else {"type": "http.disconnect"}

    gone = call(ReadOn(refusing, linger_s=300), "POST", "/", CHUNKED, receive=receive)
    assert asyncio.run(asyncio.wait_for(gone, 20)).body == ANSWER


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
