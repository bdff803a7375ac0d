"""How bodies that are not forms are read: limits while they arrive, and large JSON away from the event loop."""

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from data.images import Failure
from serve.body import Upload, read_body
from serve.errors import ApiError
from serve.protocols.jsonbody import read_decoded
from serve.settings import EndpointConfig
from tests.serving import picture

LIMITS = EndpointConfig("somewhere", max_body_mb=1, body_timeout_s=0.05)


def request_of(*chunks: bytes, stall: bool = False, headers: dict[str, str] | None = None) -> Request:
    """A request whose body comes in these chunks, and never ends if it stalls."""
    left = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]

    async def receive() -> Message:
        if left:
            return left.pop(0)
        if stall:
            await asyncio.sleep(30)
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def read(request: Request) -> bytes:
    return asyncio.run(read_body(request, LIMITS, "the body is empty: send something"))


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value.status, caught.value.code


def test_a_body_is_read_whole() -> None:
    assert read(request_of(b"one", b" ", b"two")) == b"one two"
    assert read(request_of(bytes(2**20), headers={"content-encoding": "Identity"})) == bytes(2**20)


def test_what_is_wrong_with_a_body() -> None:
    assert refusal(lambda: read(request_of())) == (400, "empty_body")
    assert refusal(lambda: read(request_of(b"x", stall=True))) == (408, "body_timeout")
    assert refusal(lambda: read(request_of(bytes(2**20), b"x"))) == (413, "body_too_large")
    assert refusal(lambda: read(request_of(b"x", headers={"content-length": "9" * 30}))) == (413, "body_too_large")
    assert refusal(lambda: read(request_of(b"x", headers={"content-encoding": "gzip"}))) == (415, "compressed_body")
    assert refusal(lambda: read(request_of(b"x", headers={"content-encoding": "br, gzip"}))) == (415, "compressed_body")


def decode_alone(body: bytes) -> tuple[int, str]:
    return len(body), threading.current_thread().name


def test_large_bodies_leave_the_event_loop_and_small_ones_do_not() -> None:
    async def run(size: int) -> tuple[int, str]:
        return await read_decoded(request_of(bytes(size)), LIMITS, decode_alone, "empty")

    assert asyncio.run(run(65_536)) == (65_536, "MainThread")
    size, name = asyncio.run(run(65_537))
    assert size == 65_537
    assert name.startswith("decode")


def test_large_bodies_are_decoded_one_at_a_time() -> None:
    alone = threading.Lock()

    def decode(body: bytes) -> bool:
        taken = alone.acquire(blocking=False)
        threading.Event().wait(0.005)
        if taken:
            alone.release()
        return taken

    async def run() -> list[bool]:
        requests = [request_of(bytes(70_000)) for _ in range(8)]
        return await asyncio.gather(*(read_decoded(one, LIMITS, decode, "empty") for one in requests))

    assert asyncio.run(run()) == [True] * 8


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_rests_while_a_large_body_is_decoded(collecting: bool) -> None:
    async def run(size: int) -> bool:
        return await read_decoded(request_of(bytes(size)), LIMITS, lambda _: gc.isenabled(), "empty")

    try:
        if not collecting:
            gc.disable()
        assert not asyncio.run(run(70_000))
        assert gc.isenabled() is collecting
    finally:
        gc.enable()


def test_an_error_in_the_thread_reaches_the_request() -> None:
    def decode(body: bytes) -> None:
        raise ApiError(422, "bad_array", "no such array")

    assert refusal(lambda: asyncio.run(read_decoded(request_of(bytes(70_000)), LIMITS, decode, "e"))) == (
        422,
        "bad_array",
    )


def test_json_in_the_place_of_an_image_is_told_where_it_goes() -> None:
    for blob in (b'{"instances": []}', b"[[1, 2]]"):
        image = Upload(blob).image
        assert isinstance(image, Failure)
        assert image.code == "not_an_image"
        assert "/v1/models/NAME:predict" in image.message
    assert Upload(picture(1)).image == picture(1)
    assert Upload(b"").image == b""
