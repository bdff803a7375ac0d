"""Where a request's CPU goes on its way through a replica, without network and model: microseconds by layer.

    python benchmarks/requestpath.py
    python benchmarks/requestpath.py --headers "x-request-disconnect-disabled: ?1" "x-request-timeout-seconds: 0"

uvicorn's protocol is fed the bytes of one request (a JPEG of 224 pixels, with a key) and writes the answer into
nothing; the endpoint behind it answers at once. So each layer's own cost shows to a few microseconds, on a busy machine
too: of many repetitions the cheapest counts. Ray's part is its replica's own code around the application (Ray 2.60's
private `Replica._direct_ingress_asgi`, with metrics that count nothing). What is missing is what the operating system
and the other thread cost: a tenth of a millisecond more for each request in a replica under load.

The last line is one JSON object: microseconds by layer.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tyro
import uvloop
from loadgen import jpegs
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from underload import say
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_KEY = "er_only-for-this-benchmark-on-loopback"


@dataclass(frozen=True)
class PathConfig:
    """How often, and what else a request says."""

    requests: int = 300
    repetitions: int = 25
    headers: tuple[str, ...] = ()
    """More headers, as NAME: VALUE."""


class Nowhere:
    """A transport that keeps what is written until the next request."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 6)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_arguments, **_named: None


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and answers an empty object."""
    while (await receive()).get("more_body"):
        pass
    head: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    await send(head)
    await send({"type": "http.response.body", "body": b"{}"})


def ours() -> dict[str, ASGIApp]:
    """The endpoint's layers around an endpoint that answers at once."""
    from models.predictor import Prediction
    from serve.application import build_asgi
    from serve.door.keystore import Keys
    from serve.endpoint import Answered
    from serve.routes import build_api
    from serve.settings import EndpointConfig
    from serve.watching.meters import MemorySink
    from serve.watching.observer import Observer

    info = SimpleNamespace(id="0123456789ab", classes=tuple(f"class-{number}" for number in range(10)))
    loaded = SimpleNamespace(config=EndpointConfig("bundle"), info=info)
    answers = [Prediction("class-1", 0.2, (0.1,) * 10, None)]

    class AtOnce:
        active = loaded

        def ready(self) -> Any:
            return loaded

        async def predict(self, images: Sequence[object], request_id: str) -> Any:
            return Answered(info, answers)  # type: ignore[arg-type]

    endpoint: Any = AtOnce()
    observer = Observer(MemorySink(), every_s=3600)
    keys = Keys({"EAGLERAY_KEYS": f"bench={_KEY}"})
    return {"routes": build_api(endpoint), "all": build_asgi(endpoint, observer, keys, echoed=True)}


def in_ray(app: ASGIApp, timeout_s: float | None) -> ASGIApp:
    """A replica of Ray Serve around it, as far as a request passes through it."""
    from ray.serve._private import http_util, replica
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import HTTPOptions

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # as in our replicas

    class Wrapper:
        event_loop = asyncio.get_running_loop()
        _run_user_code_in_separate_thread = False

        def get_user_method_info(self, _: str) -> None: ...

        async def _call_http_entrypoint(self, _: None, scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

    one: Any = object.__new__(replica.Replica)
    limits = SimpleNamespace(max_queued_requests=128, backpressure_config=None, max_ongoing_requests=32)
    one.__dict__ |= {
        "_user_callable_initialized": True,
        "_route_prefix": "/",
        "_deployment_id": DeploymentID("endpoint", "eagleray"),
        "_user_callable_asgi_app": app,
        "_http_options": HTTPOptions(request_timeout_s=timeout_s),
        "_semaphore": asyncio.Semaphore(32),
        "_num_queued_requests": 0,
        "_quiescing": False,
        "_access_log_context": {},
        "_ingress": True,
        "_reserved_slots": set(),
        "_deployment_config": limits,
        "_metrics_manager": Nowhere(),
        "_event_loop": asyncio.get_running_loop(),
        "_user_callable_wrapper": Wrapper(),
    }
    wrapped: ASGIApp = http_util._apply_middlewares(one._direct_ingress_asgi, [])
    return wrapped


async def cost(app: ASGIApp, config: PathConfig) -> float:
    """Microseconds of this thread's CPU for one request."""
    settings = Config(lambda: app, factory=True, lifespan="off", access_log=False, log_level=None, log_config=None)
    settings.load()
    transport: Any = Nowhere()
    protocol = HttpToolsProtocol(settings, ServerState(), {})
    protocol.connection_made(transport)
    (body,) = jpegs(1)
    lines = [
        "POST /predict HTTP/1.1",
        "host: 127.0.0.1",
        f"authorization: Bearer {_KEY}",
        f"content-length: {len(body)}",
    ]
    whole, best = "\r\n".join([*lines, *config.headers, "", ""]).encode() + body, float("inf")
    for _ in range(config.repetitions):
        start = time.thread_time()
        for _ in range(config.requests):
            transport.written.clear()
            protocol.data_received(whole)
            while not (transport.written and protocol.cycle.response_complete):
                await asyncio.sleep(0)
        best = min(best, (time.thread_time() - start) / config.requests)
    assert transport.written[0].startswith(b"HTTP/1.1 200"), transport.written
    return round(1e6 * best, 1)


async def measure(config: PathConfig) -> dict[str, float]:
    layers = ours()
    apps = {
        "uvicorn": nothing,
        "uvicorn, our routes": layers["routes"],
        "uvicorn, all of ours": layers["all"],
        "ray": in_ray(nothing, 120),
        "ray, all of ours": in_ray(layers["all"], 120),
    }
    found = {}
    for name, app in apps.items():
        found[name] = await cost(app, config)
        print(f"{name:>22} {found[name]:7.1f} us", flush=True)
    return found


def main() -> int:
    config = tyro.cli(PathConfig, description=__doc__)
    say(**uvloop.run(measure(config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
