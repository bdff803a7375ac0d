"""Ask an endpoint from Python; what can be tried again is tried again.

    client = Client("http://127.0.0.1:8000", key="er_...")
    client.predict("photo.jpg")                      -> Answer(label="crab", probability=0.97, ...) or Problem(...)
    for answer in client.predict_many(paths): ...    in the order of the paths

A prediction changes nothing at the endpoint, so a request whose answer did not come may be sent again. It keeps its id
in every try, and an answer counts only under that id: what a broken connection or a confused proxy hands out for
another request is thrown away. Threads may share a client.
"""

import contextlib
import json
import os
import random
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import urllib3
from urllib3.exceptions import HTTPError

from data.errors import UserError
from data.images import check_pixels, encode_png
from serve.clientanswers import (
    Answer,
    AnswerError,
    ClientError,
    Problem,
    RefusedError,
    Retry,
    RetryKind,
    Served,
    UnavailableError,
    read_error,
    read_prediction,
    read_served,
)

__all__ = [
    "Answer",
    "AnswerError",
    "Client",
    "ClientError",
    "Image",
    "Problem",
    "RefusedError",
    "Retry",
    "Served",
    "UnavailableError",
]

Image: TypeAlias = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8]
"""A file, the bytes of one, or upright RGB uint8 (H, W, 3), which travels as PNG: lossless."""

Found = TypeVar("Found")

# Worth another try after a pause. 408: the body came too slowly, or the endpoint had no time; 429: too much to do;
# the 5xx: the replica died at work, or none is up.
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
# What a server may ask for with Retry-After; beyond it we come back sooner.
_LONGEST_WISH_S: Final = 30.0
_CONNECT_S: Final = 5.0
_READY_S: Final = 5.0
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class _Reply:
    """One whole HTTP answer to one try."""

    status: int
    body: bytes
    wish_s: float
    """Retry-After in seconds, 0 without one."""
    named: bool
    """Whether it bears the request's id."""


class _OtherAnswerError(AnswerError):
    """An answer to another request."""


class Client:
    """Requests to one endpoint. It keeps its connections open; `close` it, or use it in a `with`."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 60,
        retries: int = 30,
        connections: int = 32,
        ca_file: str | None = None,
        on_retry: Callable[[Retry], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`timeout_s` bounds a request with all its tries and pauses; so many `retries` as by default need longer.
        `connections`: what is open at once.

        `ca_file` holds the certificates that an https:// endpoint may show; None trusts the usual authorities.
        `on_retry` hears of each try that failed, from the thread that made it.
        """
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url}: an endpoint's address begins with http:// or https://")
        if timeout_s <= 0 or retries < 0 or connections < 1:
            raise ValueError("timeout_s must be > 0, retries >= 0 and connections >= 1")
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout_s, self._retries = timeout_s, retries
        self._on_retry, self._sleep = on_retry, sleep
        # No retries and no redirects of urllib3's own: it would not look whose answer it has, and would carry the key
        # to wherever a redirect points. `block`: more threads than connections wait for one.
        self._pool = urllib3.PoolManager(maxsize=connections, block=True, retries=False, ca_certs=ca_file)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.clear()

    def predict(self, image: Image, *, request_id: str | None = None) -> Answer | Problem:
        """Label one image. ClientError where the endpoint gives no answer; a `Problem` where the image has none.

        `request_id`: 1 to 128 of A-Z a-z 0-9 . _ -; by default a new one.
        """
        blob = _encoded(image)
        return blob if isinstance(blob, Problem) else self._ask("POST", "/predict", read_prediction, blob, request_id)

    def predict_many(self, images: Iterable[Image], *, workers: int = 8) -> Iterator[Answer | Problem]:
        """Label images in order, `workers` requests at a time; `images` is read only a little ahead.

        The first ClientError is raised in the place of its image, and ends the iteration.
        """
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        waiting = deque[Future[Answer | Problem]]()
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(workers, thread_name_prefix="predict")
            # When the caller stops looking, what has not begun is not sent.
            stack.callback(pool.shutdown, cancel_futures=True)
            for image in images:
                waiting.append(pool.submit(self.predict, image))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def model(self) -> Served:
        """What is in service. ClientError as for `predict`."""
        return self._ask("GET", "/model", read_served)

    def ready(self) -> bool:
        """Whether the endpoint has a model and answers now. One try of at most five seconds; it needs no key."""
        try:
            return self._try("GET", "/healthz", uuid.uuid4().hex, None, time.monotonic() + _READY_S).status == 200
        except (HTTPError, ClientError):
            return False

    def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[Any], Found],
        body: bytes | None = None,
        request_id: str | None = None,
    ) -> Found:
        """Try until a 200 for this request comes, or no more can be hoped for."""
        request_id = request_id or uuid.uuid4().hex
        if not _REQUEST_ID.fullmatch(request_id):
            raise ValueError(f"request_id must be 1 to 128 of A-Z a-z 0-9 . _ -, got {request_id!r}")
        deadline, attempt = time.monotonic() + self._timeout_s, 0
        while True:
            attempt += 1
            error: ClientError
            kind: RetryKind = "status"
            wish = 0.0
            try:
                reply = self._try(method, path, request_id, body, deadline)
                if reply.status == 200:
                    return self._read(reply, read, request_id)
                code, message = read_error(reply.status, reply.body)
                if reply.status not in _AGAIN:
                    raise RefusedError(code, message, status=reply.status, request_id=request_id)
                error = UnavailableError(code, message, status=reply.status, request_id=request_id)
                wish = min(reply.wish_s, _LONGEST_WISH_S)
            except HTTPError as problem:
                kind, message = "connection", f"{self._url}: {problem}: is the endpoint up?"
                error = UnavailableError("no_connection", message, request_id=request_id)
            except _OtherAnswerError as problem:
                kind, error = "answer", problem
            pause = max(wish, _pause(attempt))
            if attempt > self._retries or time.monotonic() + pause >= deadline:
                raise error
            if self._on_retry is not None:
                self._on_retry(Retry(request_id, attempt, kind, error.status, error.message))
            self._sleep(pause)

    def _try(self, method: str, path: str, request_id: str, body: bytes | None, deadline: float) -> _Reply:
        """One try. HTTPError where the connection gives no whole answer, _OtherAnswerError for one to another request:
        that connection is closed, since what would come next on it is not ours either."""
        left = max(deadline - time.monotonic(), 0.001)
        kind = {} if body is None else {"content-type": "application/octet-stream"}
        response = self._pool.request(
            method,
            self._url + path,
            body=body,
            headers={**self._headers, **kind, "x-request-id": request_id},
            timeout=urllib3.Timeout(connect=min(_CONNECT_S, left), read=left),
            pool_timeout=left,
            redirect=False,
            preload_content=False,
        )
        try:
            # Ray Serve adds the id as well: then it stands there twice. An error may come from a proxy without ids.
            ids = response.headers.getlist("x-request-id")
            if any(name != request_id for name in ids):  # before the body is read, whose end gives the connection back
                message = f"{self._url} answered under the request id {', '.join(ids)}"
                raise _OtherAnswerError("wrong_request_id", message, status=response.status, request_id=request_id)
            whole = b"".join(_until(deadline, response))
        except BaseException:
            response.close()
            raise
        response.release_conn()
        wish = response.headers.get("retry-after", "")  # its other form, a date, would need two clocks that agree
        return _Reply(response.status, whole, float(wish[:9]) if wish.isascii() and wish.isdigit() else 0.0, bool(ids))

    def _read(self, reply: _Reply, read: Callable[[Any], Found], request_id: str) -> Found:
        with contextlib.suppress(ValueError):
            if reply.named:
                return read(json.loads(reply.body))
        message = f"{self._url} does not answer as this endpoint does: look at the address"
        raise AnswerError("not_an_answer", message, status=reply.status, request_id=request_id)


def _until(deadline: float, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The body. A server that sends a little now and then must not keep us beyond the deadline."""
    for chunk in response.stream(65536):
        yield chunk
        if time.monotonic() > deadline:
            raise HTTPError("the answer did not end in time")


def _encoded(image: Image) -> bytes | Problem:
    if isinstance(image, bytes):
        return image or Problem("empty", "the image has no bytes: read it again from its source")
    if isinstance(image, np.ndarray):
        failure = check_pixels(image)
        return Problem(failure.code, failure.message) if failure else encode_png(image)
    try:
        with open(image, "rb") as file:
            return file.read() or Problem("empty", f"{os.fspath(image)}: the file has no bytes: copy it again")
    except OSError as error:
        return Problem("unreadable", f"{os.fspath(image)}: {error.strerror or error}")


def _pause(attempt: int) -> float:
    """0.1 s, then twice as long each time up to 5 s; less up to a half by chance, so that clients keep out of step."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempt - 1, 10)) * random.uniform(0.5, 1)
