"""An endpoint that sleeps (no replica at all) is woken by 50 requests at once: all must be answered.

    python benchmarks/wake.py --rounds 3

The last line is one JSON object: `answered` and `asked` over all rounds, `p50_s`, `p99_s` and `longest_s` of the
waiting, `failed_tries` of the client, and `asleep_s`: how long after the last request the last replica was gone.
"""

import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from loadgen import jpegs, until
from underload import Endpoint, say, write_bundle

from serve.client import Answer, Client, ClientError, Retry


@dataclass(frozen=True)
class WakeConfig:
    """What is asked of the sleeper."""

    rounds: int = 3
    """Times that it is woken."""
    requests: int = 50
    """That wait for it together."""
    idle_s: float = 5
    """Seconds without a request after which it may sleep."""


def wake(client: Client, count: int) -> tuple[list[float], list[str]]:
    """Ask from `count` threads at the same moment; seconds until each answer, and what went wrong."""
    pictures, together = jpegs(10), threading.Barrier(count)
    begin = time.monotonic()

    def one(number: int) -> float | str:
        together.wait()
        try:
            answer = client.predict(pictures[number % len(pictures)])
        except ClientError as error:
            return str(error)
        return time.monotonic() - begin if isinstance(answer, Answer) else answer.message

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(one, range(count)))
    return [one for one in found if isinstance(one, float)], [one for one in found if isinstance(one, str)]


def main() -> int:
    config = tyro.cli(WakeConfig, description=__doc__)
    waits, errors, retries, asleep = list[float](), list[str](), list[Retry](), list[float]()
    flags = ("--min-replicas", "0", "--max-replicas", "1", "--idle-s", str(config.idle_s))
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "tiny", "tiny")
        with Endpoint(Path(folder) / "tiny", *flags) as endpoint:
            client = endpoint.client(connections=config.requests, on_retry=retries.append)
            for _ in range(config.rounds):
                asleep.append(until(lambda: not endpoint.tree.replicas(), seconds=300))
                good, bad = wake(client, config.requests)
                waits, errors = waits + good, errors + bad
                print(
                    f"slept after {asleep[-1]:.0f} s; {len(good)} of {config.requests} answered, the last after "
                    f"{max(good, default=0):.1f} s",
                    flush=True,
                )
            client.close()
    say(**summary(config, sorted(waits), errors, retries, asleep))
    return 0 if len(waits) == config.rounds * config.requests else 1


def summary(
    config: WakeConfig, waits: list[float], errors: list[str], retries: list[Retry], asleep: list[float]
) -> dict[str, Any]:
    def share(part: float) -> float:
        return waits[min(len(waits) - 1, int(len(waits) * part))] if waits else 0.0

    return {
        "asked": config.rounds * config.requests,
        "answered": len(waits),
        "p50_s": share(0.5),
        "p99_s": share(0.99),
        "longest_s": share(1),
        "failed_tries": dict(Counter(f"{retry.kind} {retry.status}" for retry in retries)),
        "asleep_s": asleep,
        "errors": errors[:3],
    }


if __name__ == "__main__":
    sys.exit(main())
