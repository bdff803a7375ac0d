"""What it is worth that event loop and network share a core while the network is light (serve/onecore.py).

    python benchmarks/onecore.py                  the tiny network
    python benchmarks/onecore.py --side 64        the small cnn at 64 pixels, a heavy one by that measure

The endpoint's application runs under uvicorn in this process, without Ray and HAProxy; wrk asks it. Windows with the
two threads tied and with both left to the system follow each other in turn, so that a machine whose speed wanders does
not decide. The last line is one JSON object: CPU milliseconds a request and requests a second by way, and the medians of
the pairs' own ratios, tied to left.
"""

import asyncio
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
import uvicorn
from loadgen import Post, closed_loop, jpegs
from underload import free_port, say, write_bundle

from models.processes import prepare_environment
from serve.application import build_asgi
from serve.door.keystore import Keys
from serve.endpoint import Endpoint
from serve.settings import EndpointConfig
from serve.watching.meters import MemorySink
from serve.watching.observer import Observer

_KEY = "er_only-for-this-benchmark-on-loopback"


@dataclass(frozen=True)
class CoreConfig:
    """How long."""

    connections: int = 8
    windows: int = 10
    """Pairs of them."""
    seconds: float = 4
    """Of each; a change takes two of them to come about, which are not counted."""
    side: int = 14
    """Pixels of the small cnn's input."""


def windows(config: CoreConfig, endpoint: Endpoint, post: Post) -> dict[bool, list[tuple[float, float]]]:
    """CPU seconds a request and requests a second, by whether the threads were tied."""
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for turn in range(config.windows):
        for tied in (True, False) if turn % 2 else (False, True):
            endpoint._cores.on = tied
            closed_loop(post, connections=config.connections, seconds=3)
            begin = time.process_time()
            load = closed_loop(post, connections=config.connections, seconds=config.seconds)
            found[tied].append(((time.process_time() - begin) / load.answered, load.rate))
    return found


def report(found: dict[bool, list[tuple[float, float]]]) -> None:
    ways = {"tied": found[True], "left": found[False]}
    pairs = list(zip(found[True], found[False], strict=True))
    say(
        cpu_ms={way: 1000 * statistics.median(cpu for cpu, _ in each) for way, each in ways.items()},
        rate={way: statistics.median(rate for _, rate in each) for way, each in ways.items()},
        cpu_ratio=statistics.median(tied[0] / left[0] for tied, left in pairs),
        rate_ratio=statistics.median(tied[1] / left[1] for tied, left in pairs),
    )


async def serve(config: CoreConfig, bundle: str) -> None:
    endpoint, observer = Endpoint(), Observer(MemorySink())
    await endpoint.reconfigure(EndpointConfig(bundle, threads=1).as_user_config())
    app = build_asgi(endpoint, observer, Keys({"EAGLERAY_KEYS": f"bench={_KEY}"}))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, access_log=False, log_level="warning"))
    headers = {"authorization": f"Bearer {_KEY}", "content-type": "image/jpeg"}
    post = Post(f"http://127.0.0.1:{port}/predict", jpegs(), headers)

    def drive() -> None:
        while not server.started:
            time.sleep(0.1)
        report(windows(config, endpoint, post))
        server.should_exit = True

    threading.Thread(target=drive).start()
    await server.serve()


def main() -> int:
    config = tyro.cli(CoreConfig, description=__doc__)
    prepare_environment(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "tiny", "tiny", side=config.side)
        asyncio.run(serve(config, f"{folder}/tiny"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
