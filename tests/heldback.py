"""Requests to an endpoint that are held back before their end, on purpose."""

import asyncio
import socket

from tests.served import KEY, Served
from tests.serving import picture


def half_a_request(running: Served) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", running.note.port), timeout=60)
    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: endpoint\r\nContent-Length: 100000\r\n\r\nhalf")
    return connection


async def statuses_as_they_come(running: Served, requests: int, until: int) -> list[int]:
    """So many requests at once, whose last byte is held back until `until` of them are answered 429, or one otherwise.

    A body without an end, beyond what HAProxy holds by itself, keeps its place in the replica: nothing that was
    admitted can end before that.
    """
    body, statuses, ending = picture(1, 240), list[int](), asyncio.Event()
    assert len(body) > 2**17
    head = f"POST /predict HTTP/1.1\r\nHost: endpoint\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n"

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.note.port)
        writer.write(f"{head}\r\n".encode() + body[:-1])
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        end = asyncio.create_task(ending.wait())
        await asyncio.wait((answer, end), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            writer.write(body[-1:])
        end.cancel()
        answered = (await answer).decode().lower()
        statuses.append(int(answered.split()[1]))
        assert ("\r\nretry-after: 1\r\n" in answered) == (statuses[-1] == 429), answered
        if statuses[-1] != 429 or len(statuses) >= until:
            ending.set()
        writer.close()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(requests):
            group.create_task(ask())
    return statuses
