"""Half an hour at 70 % of what the endpoint can do: does it grow, does it slow down?

    python benchmarks/soak.py
    python benchmarks/soak.py --minutes 3             shows that it runs

What it can do is measured first, by eight clients in a closed loop. Then requests come at random moments at 70 % of
that. Memory is what would be free if the processes ended (USS), of the replica and of all of them together, looked at
every ten seconds; growth is the median of the last fifth of the looks against that of the first fifth after warm-up.

The last line is one JSON object: `replica_growth` and `tree_growth` as shares, the latencies of the whole time, and how
many requests were refused or broken, which should be none.
"""

import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from loadgen import Post, closed_loop, jpegs, open_loop
from underload import Endpoint, say, write_bundle


@dataclass(frozen=True)
class SoakConfig:
    """How long and how hard."""

    minutes: float = 30
    """Of load."""
    share: float = 0.7
    """Of what the endpoint can do."""
    warm_up: float = 0.15
    """Share of the time that is not looked at."""
    model: Literal["tiny", "resnet18"] = "tiny"
    """What is served. tiny has the most requests in the time, so what is lost with each of them shows best."""


class Scales:
    """Looks at the memory while it is open."""

    def __init__(self, endpoint: Endpoint, every_s: float) -> None:
        self._endpoint, self._every_s, self._ended = endpoint, every_s, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.replica: list[int] = []
        self.tree: list[int] = []

    def __enter__(self) -> "Scales":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(self._every_s):
            tree = self._endpoint.tree
            self.replica.append(tree.memory(tree.replicas()))
            self.tree.append(tree.memory())


def growth(looks: list[int], warm_up: float) -> float:
    """Last fifth against first fifth, without the warm-up."""
    kept = looks[int(len(looks) * warm_up) :]
    fifth = max(1, len(kept) // 5)
    return statistics.median(kept[-fifth:]) / statistics.median(kept[:fifth]) - 1


def megabytes(looks: list[int]) -> list[int]:
    """Twenty of the looks, for people."""
    return [round(look / 2**20) for look in looks[:: max(1, len(looks) // 20)]]


def main() -> int:
    config = tyro.cli(SoakConfig, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / config.model
        write_bundle(bundle, config.model)
        with Endpoint(bundle, "--max-replicas", "1") as endpoint:
            post = Post(f"{endpoint.url}/predict", jpegs(), endpoint.headers)
            closed_loop(post, connections=8, seconds=5)
            able = closed_loop(post, connections=8, seconds=15).rate
            rate, seconds = config.share * able, 60 * config.minutes
            print(f"{able:.0f} requests a second at most; {rate:.0f} for {config.minutes:g} minutes", flush=True)
            begin = time.monotonic()
            with Scales(endpoint, every_s=min(10.0, seconds / 20)) as scales:
                load = open_loop(post, rate=rate, seconds=seconds)
            took = time.monotonic() - begin
    found = {
        "replica_growth": growth(scales.replica, config.warm_up),
        "tree_growth": growth(scales.tree, config.warm_up),
        "replica_mb": megabytes(scales.replica),
        "tree_mb": megabytes(scales.tree),
    }
    say(**found, load=load, seconds=took, rate_wanted=rate, able=able)
    return 0


if __name__ == "__main__":
    sys.exit(main())
