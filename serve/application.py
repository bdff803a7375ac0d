"""The endpoint as one ASGI application: counted, then guarded, then routed."""

from collections.abc import Callable
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import predictroutes
from serve.door.access import Guarded
from serve.door.keystore import Keys
from serve.door.unread import ReadOn
from serve.endpoint import Endpoint
from serve.routes import build_api
from serve.settings import EndpointConfig
from serve.shortpath import ShortPath
from serve.watching.observe import Observed
from serve.watching.observer import Observer

_HEADERS: Final = ("authorization", "x-api-key", "content-type", "accept", "x-request-id")
_SHOWN: Final = ("x-request-id", "x-model-id", "retry-after")


def build_asgi(endpoint: Endpoint, observer: Observer, keys: Keys, *, echoed: bool = False) -> ASGIApp:
    """All layers, outermost first: reading on, ids and counts, other origins, keys and rates, routes.

    `echoed`: see `serve.watching.observe.Observed`.
    """

    def settings() -> EndpointConfig | None:
        return None if endpoint.active is None else endpoint.active.config

    def origins() -> str:
        config = settings()
        return "" if config is None else config.cors

    routed = ShortPath(build_api(endpoint), predictroutes.predict_route(endpoint))
    guarded = Guarded(routed, keys, settings)
    return ReadOn(Observed(_Origins(guarded, origins), observer, echoed=echoed))


class _Origins:
    """Lets pages of the named origins call from a browser. Outside the keys: a browser's first question has none."""

    def __init__(self, app: ASGIApp, origins: Callable[[], str]) -> None:
        self._app = app
        self._origins = origins
        self._made: tuple[str, ASGIApp] = ("", app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = self._origins()
        if self._made[0] != origins:  # they may change while the endpoint runs
            self._made = (origins, self._allowing(origins) if origins else self._app)
        await self._made[1](scope, receive, send)

    def _allowing(self, origins: str) -> ASGIApp:
        return CORSMiddleware(
            self._app,
            allow_origins=[origin.strip() for origin in origins.split(",") if origin.strip()],
            allow_methods=("GET", "POST"),
            allow_headers=_HEADERS,
            expose_headers=_SHOWN,
        )
