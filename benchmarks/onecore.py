"""What it is worth that a replica keeps to one core while its network is light (serve/onecore.py).

    python benchmarks/onecore.py                  the tiny network
    python benchmarks/onecore.py --side 64        the small cnn at 64 pixels, a heavy one by that measure

Two endpoints are up, one with `--no-one-core`, and are asked in turn, so that a machine whose speed wanders does not
decide. CPU is that of a replica alone, since the idle processes of two endpoints count twice here. The last line is one
JSON object: CPU milliseconds a request, requests a second and p50 by way, and the medians of the pairs' own ratios.
"""

import contextlib
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from loadgen import Post, closed_loop, jpegs
from underload import Endpoint, say, write_bundle

_FLAGS = {"one_core": "--one-core", "left": "--no-one-core"}


@dataclass(frozen=True)
class CoreConfig:
    """How long."""

    connections: int = 8
    windows: int = 10
    """Of each endpoint."""
    seconds: float = 3
    """Of each window."""
    side: int = 14
    """Pixels of the small cnn's input."""


@dataclass(frozen=True)
class Window:
    """What one endpoint did in it."""

    cpu_ms: float
    rate: float
    p50_ms: float


def window(endpoint: Endpoint, config: CoreConfig) -> Window:
    post = Post(f"{endpoint.url}/predict", jpegs(), {**endpoint.headers, "content-type": "image/jpeg"})
    closed_loop(post, connections=config.connections, seconds=1)  # it has rested, and begins anew
    (replica,) = endpoint.tree.replicas()
    before = endpoint.tree.cpu()[replica]
    load = closed_loop(post, connections=config.connections, seconds=config.seconds)
    return Window(1000 * (endpoint.tree.cpu()[replica] - before) / load.answered, load.rate, load.p50_ms)


def main() -> int:
    config = tyro.cli(CoreConfig, description=__doc__)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as both:
        write_bundle(Path(folder) / "tiny", "tiny", side=config.side)
        endpoints = {
            name: both.enter_context(Endpoint(Path(folder) / "tiny", "--max-replicas", "1", flag))
            for name, flag in _FLAGS.items()
        }
        found: dict[str, list[Window]] = {name: [] for name in endpoints}
        for turn in range(config.windows):
            for name in list(endpoints)[:: 1 if turn % 2 else -1]:
                found[name].append(window(endpoints[name], config))
    pairs = list(zip(found["one_core"], found["left"], strict=True))
    ways = {
        name: {what: statistics.median(getattr(one, what) for one in each) for what in ("cpu_ms", "rate", "p50_ms")}
        for name, each in found.items()
    }
    say(
        **ways,
        cpu_ratio=statistics.median(one.cpu_ms / left.cpu_ms for one, left in pairs),
        rate_ratio=statistics.median(one.rate / left.rate for one, left in pairs),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
