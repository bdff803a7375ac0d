"""What a replica adds to each request on its own port, before Ray sees it.

Ray keeps a task beside each request that waits for its client to go away, and one for its time-out: 25 microseconds of
CPU, to cancel what takes milliseconds. That task also gathers the whole body in memory, whatever our limits are. Ray
leaves both out for a request whose headers say so, and this says so for all. What bounds a request without them: the
body's time-out, the length of the queue, HAProxy's time-out for an answer, and the replica's health check, which ends a
network that hangs.

Ray also refuses here what finds no place in its queue, and lets the rest wait for their turn, all before the endpoint
itself hears of them. So the time of a request begins here, and what never came through is counted here.
"""

import time
from typing import Final

import ray.serve
from ray.serve.exceptions import RayServeException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.scopestate import arrival, note_arrival, noted
from serve.watching.observe import GONE, OTHER, Observer, method_of, request_id_of

_SAID: Final = ((b"x-request-disconnect-disabled", b"?1"), (b"x-request-timeout-seconds", b"0"))
_RAYS_OWN: Final = "/-/"
"""HAProxy looks after a replica under such a path."""

_observers: list[Observer] = []
"""Of this process: Ray makes what is below from its import path, and hands it nothing."""


def tell(observer: Observer) -> None:
    """From now on `observer` hears of the requests that do not reach the endpoint."""
    _observers[:] = [observer]


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which Ray's own proxy reads too: its time-out stays."""
    try:
        ray.serve.get_replica_context()
    except RayServeException:
        return []
    return [Middleware(Outermost)]


class Outermost:
    """Around Ray's own handling of a request. Of equal headers the last one counts, so what a client says of them is
    overruled."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note_arrival(scope)
        scope["headers"] = [*scope["headers"], *_SAID]
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:  # the server answers 500 in our place
            status = status or 500
            raise
        finally:
            if not noted(scope, "request_id") and not scope["path"].startswith(_RAYS_OWN):
                _count(scope, status or GONE)


def _count(scope: Scope, status: int) -> None:
    """A request that Ray alone has answered, or whose client did not wait for its turn."""
    for observer in _observers:
        observer.request(
            route=OTHER,
            method=method_of(scope),
            status=status,
            seconds=time.perf_counter() - arrival(scope),
            model="",
            key="",
            request_id=request_id_of(scope)[0],
            received=0,
        )
