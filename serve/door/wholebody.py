"""A request's whole body, read before the application runs, and given to it as if nobody had."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from serve.errors import ApiError


async def read_whole(scope: Scope, receive: Receive, most: int, patience_s: float) -> bytes:
    """The body, of at most `most` bytes. ApiError 408 or 413; ClientDisconnect where the client goes before its end."""
    message = f"the body is larger than {most / 2**20:g} MiB: send fewer images"
    too_large = ApiError(413, "body_too_large", message)
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if announced.isdigit() and int(announced[:20]) > most:
        raise too_large
    body = bytearray()  # and no list of chunks: a hostile client may send them of one byte each
    more = True
    try:
        async with asyncio.timeout(patience_s):
            while more:
                chunk, more = await next_piece(receive)
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        message = f"the body did not arrive within {patience_s:g} s: send it faster or send fewer images"
        raise ApiError(408, "body_timeout", message) from None
    return bytes(body)


async def discard(receive: Receive) -> None:
    """Read the body to its end and keep nothing of it. ClientDisconnect where the client goes before."""
    more = True
    while more:
        _, more = await next_piece(receive)


async def next_piece(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there are more. ClientDisconnect where the client has gone."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read, once more, and then whatever comes."""
    left: list[bytes] = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again
