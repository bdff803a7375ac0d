"""What a request costs behind our endpoint, and behind what else one could have taken. Same model, JPEGs and machine.

    python benchmarks/serving.py --others-python OTHER/bin/python     where LitServe and BentoML are installed
    python benchmarks/serving.py --quick --rounds 1                   shows that it runs

ours        `python serve/app.py` with its defaults: key, limits, metrics, HAProxy; one replica
bare        asyncio's protocol, httptools, one thread for the model (servers/bareserver.py): no key, no limits
fastapi     FastAPI and uvicorn with the same key check
ray         Ray Serve as it comes, without a key
litserve    as its documentation has it, without a key; `litserve8` with batches of up to eight
bentoml     as its documentation has it, without a key

Every server runs our predictor on one thread; `tiny` is a network that costs next to nothing (benchmarks/underload.py),
so what differs is everything else. One server is up at a time; the rounds go through them in turn, every second round
backwards. wrk (or our own client) keeps so many requests under way on loopback and sends 50 JPEGs of 224 pixels in
turn. CPU is user and system time of the whole tree of the server's processes, Ray's and HAProxy included.

The last line is one JSON object. `tiny_of_bare`, `tiny_over_litserve`, `tiny_over_bentoml`: requests per CPU second,
ours to theirs, the lower of 8 and 32 requests at a time (LitServe: the better of its two); `tiny_over_fastapi`: at 32.
`resnet18_of_limit`: images per CPU second, ours to the raw forward's at its best batch, the lower of 8 and 32;
`resnet18_of_limit_wall`: images a second, by the clock. `p99_over_p50_at_8`: ours with resnet18. `rate_200_of_32`: good
answers a second, ours with tiny. Each ratio is the median of the rounds' own.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tyro
from loadgen import Load, Post, closed_loop, jpegs
from underload import ROOT, Endpoint, Kind, Tree, free_port, say, spent, write_bundle

from models.processes import prepare_environment

SERVERS = Path(__file__).with_name("servers")
_BOUNDARY = "frontier"
# 24 characters at least, as our key store wants them.
_KEY = "er_only-for-this-benchmark-on-loopback"


@dataclass(frozen=True)
class ServingConfig:
    """What is compared."""

    others_python: str = ""
    """Python of an environment with litserve and bentoml; empty leaves these two out."""
    servers: tuple[str, ...] = ("ours", "bare", "fastapi", "ray", "litserve", "litserve8", "bentoml")
    """Who takes part with the tiny model."""
    resnet_servers: tuple[str, ...] = ("ours", "bare")
    """Who takes part with resnet18."""
    rounds: int = 3
    """How often each server is started and measured."""
    seconds: float = 5
    """Of load at each level with the tiny model; with resnet18 three times as long."""
    quick: bool = False
    """A second at each level: shows that it runs, and measures nothing."""


@dataclass(frozen=True)
class Rival:
    """A server that is not ours."""

    script: str
    others: bool = False
    """Runs in the other environment."""
    form: bool = False
    """Takes images as a form's file."""
    env: Mapping[str, str] = field(default_factory=dict)


RIVALS = {
    "bare": Rival("bareserver.py"),
    "fastapi": Rival("fastapiserver.py"),
    "ray": Rival("rayserver.py"),
    "litserve": Rival("litserver.py", others=True, form=True),
    "litserve8": Rival("litserver.py", others=True, form=True, env={"LIT_BATCH": "8"}),
    "bentoml": Rival("bentoserver.py", others=True),
}


@dataclass(frozen=True)
class Measured:
    """One server at one level of load."""

    load: Load
    per_cpu_s: float
    """Good answers for each CPU second of the server."""
    cpu_ms: Mapping[str, float]
    """Where they go: CPU milliseconds for each good answer, by process, the costliest four."""


def measured(tree: Tree, post: Post, connections: int, seconds: float) -> Measured:
    names, before = tree.names(), tree.cpu()
    load = closed_loop(post, connections=connections, seconds=seconds)
    after = tree.cpu()
    each = {pid: 1000 * (used - before.get(pid, 0.0)) / max(1, load.answered) for pid, used in after.items()}
    costliest = sorted(each, key=lambda pid: -each[pid])[:4]
    shares = {f"{names.get(pid, 'new')} {pid}": round(each[pid], 3) for pid in costliest}
    return Measured(load, load.answered / max(spent(before, after), 1e-9), shares)


@contextmanager
def rival(one: Rival, bundle: Path, python: str) -> Iterator[tuple[str, Tree]]:
    """The server as a process of its own: its address and its processes."""
    port = free_port()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "EAGLERAY_BUNDLE": str(bundle), "EAGLERAY_PORT": str(port)}
    env |= {"EAGLERAY_KEY": _KEY, **one.env}
    if one.others:
        packages = [path for path in sys.path if path.endswith("site-packages")]
        env["EAGLERAY_PATH"] = os.pathsep.join([str(ROOT), *packages])
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        command = [python if one.others else sys.executable, str(SERVERS / one.script)]
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        tree = Tree(process.pid)
        try:
            _wait_for(port, process, Path(log.name))
            yield f"http://127.0.0.1:{port}/predict", tree
        finally:
            left = tree.processes()
            for ended in left:
                _end(ended, kill=False)
            for stubborn in psutil.wait_procs(left, timeout=15)[1]:
                _end(stubborn, kill=True)


def _end(process: psutil.Process, *, kill: bool) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill() if kill else process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until somebody listens."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")


def form(blob: bytes) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg'
    )
    return head.encode() + b"\r\n\r\n" + blob + f"\r\n--{_BOUNDARY}--\r\n".encode()


@contextmanager
def server(name: str, bundle: Path, python: str) -> Iterator[tuple[Post, Tree]]:
    """A server that is up, and what is to be posted to it."""
    pictures = jpegs()
    if name == "ours":
        with Endpoint(bundle, "--max-replicas", "1") as endpoint:
            headers = {**endpoint.headers, "content-type": "image/jpeg"}
            yield Post(f"{endpoint.url}/predict", pictures, headers), endpoint.tree
        return
    one = RIVALS[name]
    kind = f"multipart/form-data; boundary={_BOUNDARY}" if one.form else "image/jpeg"
    bodies = [form(picture) for picture in pictures] if one.form else pictures
    with rival(one, bundle, python) as (url, tree):
        yield Post(url, bodies, {"authorization": f"Bearer {_KEY}", "content-type": kind}), tree


def check(post: Post, bundle: Path) -> None:
    """The server gives the predictor's own answer: the same model for all."""
    from models.predictor import Prediction, Predictor

    predictor = Predictor.load(str(bundle), threads=1)
    for body, picture in list(zip(post.bodies, jpegs(), strict=True))[:3]:
        (found,) = json.loads(_first_answer(post, body))["predictions"]
        (expected,) = predictor.predict([picture])
        assert isinstance(expected, Prediction)
        assert found["label"] == expected.label
        assert abs(found["probability"] - expected.probability) < 1e-4, (found, expected)


def _first_answer(post: Post, body: bytes) -> bytes:
    """Ray's proxy answers 404 until the application behind it is up."""
    end = time.monotonic() + 90
    while True:
        try:
            request = urllib.request.Request(post.url, data=body, headers=dict(post.headers))
            with urllib.request.urlopen(request, timeout=60) as reply:
                answer: bytes = reply.read()
                return answer
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def one_round(config: ServingConfig, bundle: Path, names: list[str], levels: Mapping[int, float]) -> dict[str, Any]:
    """Each server once; Measured by name and level."""
    found: dict[str, Any] = {}
    for name in names:
        with server(name, bundle, config.others_python) as (post, tree):
            check(post, bundle)
            closed_loop(post, connections=8, seconds=2)
            found[name] = {level: measured(tree, post, level, seconds) for level, seconds in levels.items()}
        for level, one in found[name].items():
            load, shares = one.load, ", ".join(f"{who} {ms}" for who, ms in one.cpu_ms.items())
            print(
                f"{bundle.name:>8} {name:>9} {level:>3} at once: {one.per_cpu_s:6.0f} per CPU s, {load.rate:6.0f}/s, "
                f"p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms, {load.refused} refused, {load.broken} broken"
                f"  ({shares} ms)",
                flush=True,
            )
    return found


def raw_limit(bundle: Path) -> dict[str, Any]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "EAGLERAY_BUNDLE": str(bundle)}
    done = subprocess.run(
        [sys.executable, str(SERVERS / "rawforward.py")], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"raw forward, {found['engine']}: {found['rates']} images per CPU s by batch", flush=True)
    return found


def rounds_of(config: ServingConfig, bundle: Path, names: tuple[str, ...], levels: Mapping[int, float]) -> list[Any]:
    taking_part = [name for name in names if name == "ours" or config.others_python or not RIVALS[name].others]
    found = []
    for turn in range(config.rounds):
        one = one_round(config, bundle, taking_part[:: 1 if turn % 2 == 0 else -1], levels)
        if bundle.name == "resnet18":
            one["limit"] = raw_limit(bundle)
        found.append(one)
    return found


def median_ratio(rounds: list[Any], over: tuple[str, ...], level: int) -> float | None:
    """Requests per CPU second, ours to the best of `over`."""
    if not any(name in rounds[0] for name in over):
        return None
    best = [max(one[name][level].per_cpu_s for name in over if name in one) for one in rounds]
    return float(statistics.median(one["ours"][level].per_cpu_s / rate for one, rate in zip(rounds, best, strict=True)))


def lower(rounds: list[Any], *over: str) -> float | None:
    ratios = [ratio for level in (8, 32) if (ratio := median_ratio(rounds, over, level)) is not None]
    return min(ratios, default=None)


def summary(tiny: list[Any], resnet: list[Any]) -> dict[str, Any]:
    def of_limit(level: int) -> float:
        ratios = [one["ours"][level].per_cpu_s / max(one["limit"]["rates"].values()) for one in resnet]
        return float(statistics.median(ratios))

    def wall_of_limit(level: int) -> float:
        ratios = [one["ours"][level].load.rate / max(one["limit"]["wall_rates"].values()) for one in resnet]
        return float(statistics.median(ratios))

    at_8 = [one["ours"][8].load for one in resnet]
    busiest = [one["ours"][200].load.rate / one["ours"][32].load.rate for one in tiny]
    return {
        "tiny_of_bare": lower(tiny, "bare"),
        "tiny_over_litserve": lower(tiny, "litserve", "litserve8"),
        "tiny_over_bentoml": lower(tiny, "bentoml"),
        "tiny_over_ray": lower(tiny, "ray"),
        "tiny_over_fastapi": median_ratio(tiny, ("fastapi",), 32),
        "resnet18_of_limit": min(of_limit(8), of_limit(32)) if resnet else None,
        "resnet18_of_limit_wall": min(wall_of_limit(8), wall_of_limit(32)) if resnet else None,
        "p99_over_p50_at_8": statistics.median(load.p99_ms / load.p50_ms for load in at_8) if resnet else None,
        "rate_200_of_32": statistics.median(busiest) if tiny else None,
        "tiny": [_plain(one) for one in tiny],
        "resnet18": [_plain(one) for one in resnet],
    }


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: one if name == "limit" else {str(level): asdict(measured) for level, measured in one.items()}
        for name, one in found.items()
    }


def main() -> int:
    config = tyro.cli(ServingConfig, description=__doc__)
    prepare_environment()
    seconds = 1.0 if config.quick else config.seconds
    with tempfile.TemporaryDirectory() as folder:
        kinds: tuple[Kind, ...] = ("tiny", "resnet18")
        for kind in kinds:
            write_bundle(Path(folder) / kind, kind)
        every = dict.fromkeys((1, 8, 32, 200), seconds)
        tiny = rounds_of(config, Path(folder) / "tiny", config.servers, every) if config.servers else []
        three = dict.fromkeys((1, 8, 32), 3 * seconds)
        resnet = rounds_of(config, Path(folder) / "resnet18", config.resnet_servers, three)
        say(**summary(tiny, resnet))
    return 0


if __name__ == "__main__":
    sys.exit(main())
