"""Requests counted one by one while everything happens to the endpoint that may happen.

    python benchmarks/faults.py                       about five minutes
    python benchmarks/faults.py --kills 0             the same without kills: then no socket may fail at all
    python benchmarks/faults.py --quick

Threads ask through `serve/client.py`, each request under an id of its own. Meanwhile the model is promoted three times
and rolled back once (`serve/promote.py`), replicas are killed with SIGKILL, and nothing but the number of clients
drives the replicas from one to three and back to one. An answer is checked against the predictor: the probabilities
must be those of the model that it names, for the picture that was sent, and the model must be one that was in service
between the question and the answer.

The last line is one JSON object. `lost`, `doubled` and `wrong` must be 0. `failed_tries` are the tries that failed on
the raw socket or with a 5xx, which the client made good; `unexplained` of them came without a kill, or were more than
were under way when the replica was killed. `refused_tries` were answered 429 or 408.
"""

import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from loadgen import jpegs, until
from underload import Endpoint, command, say, write_bundle

from serve.client import Answer, ClientError, Problem, Retry

# What is failed later than this after a kill was not failed by it: until then the dead replica may still be asked.
_AFTERMATH_S = 20.0
_SETTINGS = (
    *("--min-replicas", "1", "--max-replicas", "3", "--cpus-per-replica", "0.5", "--max-ongoing-requests", "8"),
    *("--upscale-s", "2", "--idle-s", "8"),
)


@dataclass(frozen=True)
class FaultsConfig:
    """What happens."""

    requests: int = 10_000
    """At least so many."""
    kills: int = 5
    """Replicas that are killed."""
    clients: int = 24
    """Threads that ask at the peak; three times what one replica should have under way."""
    calm: int = 2
    """Threads that ask otherwise, with pauses."""
    seed: int = 0
    """Of the choice of the replica that is killed."""
    quick: bool = False
    """One promotion, one rollback, one kill, no growth."""


@dataclass
class Ledger:
    """What was asked and what came of it. Threads write to it; it is read when they have ended."""

    answers: list[tuple[int, int, Answer | Problem, float, float]] = field(default_factory=list)
    """Number, picture, answer, when asked, when answered."""
    asked: int = 0
    """Requests, numbered from 0."""
    lost: list[str] = field(default_factory=list)
    """Those that ended with an error of the client."""
    retries: list[tuple[float, Retry]] = field(default_factory=list)
    kills: list[tuple[float, int]] = field(default_factory=list)
    """When, and how many requests were under way."""
    models: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    """From when on which models might answer a new request."""
    replicas: list[tuple[float, int]] = field(default_factory=list)

    def in_service(self, asked: float, answered: float) -> frozenset[str]:
        """The models that might answer a request: those of any moment of its life."""
        starts = [since for since, _ in self.models]
        first = max((at for at, since in enumerate(starts) if since <= asked), default=0)
        during = [names for since, names in self.models[first:] if since <= answered]
        return frozenset().union(*during)


class Crowd:
    """Clients, of which as many ask as are wanted now."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger, config: FaultsConfig) -> None:
        self.wanted = config.calm
        self._calm = config.calm
        self._ledger, self._pictures = ledger, jpegs(20)
        self._numbers, self._ended = itertools.count(), threading.Event()
        self._client = endpoint.client(connections=config.clients, on_retry=self._note)  # as patient as anybody's
        self.under_way = 0
        self.done = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(place,)) for place in range(config.clients)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._ledger.asked = next(self._numbers)
        self._client.close()

    def _note(self, retry: Retry) -> None:
        self._ledger.retries.append((time.monotonic(), retry))

    def _ask(self, place: int) -> None:
        while not self._ended.is_set():
            if place >= self.wanted:
                self._ended.wait(0.05)
                continue
            number = next(self._numbers)
            picture, asked = number % len(self._pictures), time.monotonic()
            with self._lock:
                self.under_way += 1
            try:
                answer = self._client.predict(self._pictures[picture], request_id=f"request-{number}")
                self._ledger.answers.append((number, picture, answer, asked, time.monotonic()))
            except ClientError as error:
                self._ledger.lost.append(f"request-{number}: {error}")
            finally:
                with self._lock:
                    self.under_way -= 1
                    self.done += 1
            if self.wanted <= self._calm:
                self._ended.wait(0.03)


class Scenario:
    """The endpoint's bad day."""

    def __init__(self, endpoint: Endpoint, crowd: Crowd, ledger: Ledger, config: FaultsConfig) -> None:
        self._endpoint, self._crowd, self._ledger, self._config = endpoint, crowd, ledger, config
        self._draw, self._kills_left = random.Random(config.seed), config.kills

    def promote(self, *words: str, before: str, after: str) -> None:
        """`serve/promote.py`; from its start on both models may answer, after its end the new one alone."""
        self._ledger.models.append((time.monotonic(), frozenset({before, after})))
        begin = time.monotonic()
        done = command(self._endpoint, "promote.py", *words, "--port", str(self._endpoint.port))
        if done.returncode:
            raise RuntimeError(f"promote.py {words} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        self._ledger.models.append((time.monotonic(), frozenset({after})))
        print(
            f"{before} -> {after} in {time.monotonic() - begin:.0f} s, {self._crowd.done} requests so far", flush=True
        )

    def kill(self, times: int) -> None:
        """SIGKILL to one of the replicas that are up, and time for what follows."""
        for _ in range(min(times, self._kills_left)):
            self._kills_left -= 1
            until(lambda: bool(self._endpoint.tree.replicas()), seconds=120)
            until(lambda: self._crowd.under_way > 0, seconds=60, every=0.001)  # else it would show little
            pid = self._draw.choice(self._endpoint.tree.replicas())
            self._ledger.kills.append((time.monotonic(), self._crowd.under_way))
            os.kill(pid, signal.SIGKILL)
            print(f"killed replica {pid} with {self._crowd.under_way} requests under way", flush=True)
            time.sleep(10)

    def replicas(self, count: int, seconds: float) -> float:
        took = until(lambda: len(self._endpoint.tree.replicas()) == count, seconds=seconds, every=1)
        print(f"{count} replicas after {took:.0f} s with {self._crowd.wanted} clients", flush=True)
        return took

    def run(self, bundles: dict[str, Path]) -> dict[str, float]:
        """Everything; the seconds that growing and shrinking took."""
        first, second, third, fourth = bundles
        self._ledger.models.append((0.0, frozenset({first})))
        loose = ("--min-agreement", "0", "--max-latency-ratio", "20", "--min-requests", "30")
        calm, peak, took = self._config.calm, self._config.clients, dict[str, float]()
        self.promote(str(bundles[second]), *loose, before=first, after=second)
        if not self._config.quick:
            self._crowd.wanted = peak
            took["to_three_s"] = self.replicas(3, 180)
            self.kill(2)
            self.promote(str(bundles[third]), *loose, before=second, after=third)
            self.kill(2)
            self.promote("--rollback", before=third, after=second)
        else:
            self.promote("--rollback", before=second, after=first)
        self._crowd.wanted = calm
        if not self._config.quick:
            took["to_one_s"] = self.replicas(1, 300)
        self.kill(1)
        if not self._config.quick:
            self.promote(str(bundles[fourth]), *loose, before=second, after=fourth)
        self._crowd.wanted = peak
        until(lambda: self._crowd.done >= self._config.requests, seconds=1200)
        self._crowd.wanted = calm
        return took


def count(ledger: Ledger, bundles: dict[str, Path]) -> dict[str, Any]:
    """The balance."""
    from models.predictor import Prediction, Predictor

    expected = {name: Predictor.load(str(folder), threads=1).predict(jpegs(20)) for name, folder in bundles.items()}
    numbers = Counter(number for number, *_ in ledger.answers)
    wrong = []
    for number, picture, answer, begin, end in ledger.answers:
        if not isinstance(answer, Answer):
            wrong.append(f"request-{number}: {answer}")
            continue
        right = expected.get(answer.model, [None] * 20)[picture]
        same = isinstance(right, Prediction) and abs(answer.probability - right.probability) < 1e-4
        if not same or answer.model not in ledger.in_service(begin, end):
            wrong.append(f"request-{number}: {answer.model} {answer.label} {answer.probability}")
    failed = [(at, retry) for at, retry in ledger.retries if retry.status not in (408, 429)]
    refused = len(ledger.retries) - len(failed)
    return {
        "requests": ledger.asked,
        "lost": ledger.asked - len(numbers),
        "doubled": sum(times - 1 for times in numbers.values()),
        "wrong": len(wrong),
        "failed_tries": len(failed),
        "failed_by_kind": dict(Counter(f"{retry.kind} {retry.status or ''}".strip() for _, retry in failed)),
        "refused_tries": refused,
        "unexplained": unexplained([at for at, _ in failed], ledger.kills),
        "kills": [under_way for _, under_way in ledger.kills],
        "answers_by_model": dict(Counter(a.model for _, _, a, *_ in ledger.answers if isinstance(a, Answer))),
        "longest_s": max((end - begin for *_, begin, end in ledger.answers), default=0.0),
        "most_replicas": max((replicas for _, replicas in ledger.replicas), default=0),
        "examples": [*wrong[:3], *ledger.lost[:3], *(str(retry) for _, retry in failed[:3])],
    }


def unexplained(failed: list[float], kills: list[tuple[float, int]]) -> int:
    """Failed tries that no kill accounts for: a kill accounts for as many as were under way, soon after it."""
    left = [[at, room] for at, room in kills]
    alone = 0
    for moment in sorted(failed):
        blamed = next((kill for kill in left if kill[1] > 0 and kill[0] <= moment <= kill[0] + _AFTERMATH_S), None)
        if blamed is None:
            alone += 1
        else:
            blamed[1] -= 1
    return alone


def watch(endpoint: Endpoint, ledger: Ledger, ended: threading.Event) -> None:
    while not ended.wait(1):
        ledger.replicas.append((time.monotonic(), len(endpoint.tree.replicas())))


def main() -> int:
    config = tyro.cli(FaultsConfig, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        bundles = {}
        for seed in range(4):
            place = Path(folder) / f"bundle-{seed}"
            bundles[write_bundle(place, "tiny", seed=seed)] = place
        ledger, ended = Ledger(), threading.Event()
        with Endpoint(bundles[next(iter(bundles))], *_SETTINGS) as endpoint:
            looking = threading.Thread(target=watch, args=(endpoint, ledger, ended))
            looking.start()
            try:
                with Crowd(endpoint, ledger, config) as crowd:
                    took = Scenario(endpoint, crowd, ledger, config).run(bundles)
            except BaseException:
                print(endpoint.log()[-3000:], file=sys.stderr)
                raise
            finally:
                ended.set()
                looking.join()
        found = count(ledger, bundles)
        say(**found, **took)
    return 1 if found["lost"] or found["doubled"] or found["wrong"] or found["unexplained"] else 0


if __name__ == "__main__":
    sys.exit(main())
