"""What a replica adds to each request on its own port, before Ray sees it.

Ray keeps a task beside each request that waits for its client to go away, and one for its time-out: 25 microseconds of
CPU, to cancel what takes milliseconds. That task also gathers the whole body in memory, whatever our limits are. Ray
leaves both out for a request whose headers say so, and this says so for all. What bounds a request without them: the
body's time-out, the length of the queue, HAProxy's time-out for an answer, and the replica's health check, which ends a
network that hangs.
"""

import ray.serve
from ray.serve.exceptions import RayServeException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_SAID = ((b"x-request-disconnect-disabled", b"?1"), (b"x-request-timeout-seconds", b"0"))


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which Ray's own proxy reads too: its time-out stays."""
    try:
        ray.serve.get_replica_context()
    except RayServeException:
        return []
    return [Middleware(Unwatched)]


class Unwatched:
    """Of equal headers the last one counts, so what a client says of them is overruled."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], *_SAID]
        await self._app(scope, receive, send)
