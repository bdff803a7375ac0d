"""What a request costs behind our endpoint, and behind what else one could have taken. Same model, JPEGs and machine.

    python benchmarks/serving.py --others-python OTHER/bin/python     where litserve and bentoml>=1.4 are installed
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
`resnet18_of_limit`: images per CPU second, ours to the raw forward's, the lower of 8 and 32; the raw forward runs
alone, right before and right after ours in each round, and counts with the batch that is best over the whole run;
`resnet18_of_limit_wall`: images a second, by the clock. `p99_over_p50_at_8`: ours with resnet18. `rate_200_of_32`: good
answers a second, ours with tiny. Each ratio is the median of the rounds' own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from loadgen import Load, Post, closed_loop
from rivals import RIVALS, SERVERS, check, server
from underload import Kind, Tree, say, spent, write_bundle

from models.processes import prepare_environment


@dataclass(frozen=True)
class ServingConfig:
    """What is compared."""

    others_python: str = ""
    """Python of an environment with litserve and bentoml>=1.4; empty leaves these two out."""
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


def one_round(config: ServingConfig, bundle: Path, names: list[str], levels: Mapping[int, float]) -> dict[str, Any]:
    """Each server once; Measured by name and level."""
    found: dict[str, Any] = {}
    for name in names:
        beside = bundle.name == "resnet18" and name == "ours"
        # Twice, since a machine's speed wanders from minute to minute: the mean is that of the time in between.
        limits = [raw_limit(bundle)] if beside else []
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
        if beside:
            found["limit"] = [*limits, raw_limit(bundle)]
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
    orders = [taking_part[:: 1 if turn % 2 == 0 else -1] for turn in range(config.rounds)]
    return [one_round(config, bundle, names, levels) for names in orders]


def limits_of(rounds: list[Any], rates: str) -> list[float]:
    """Images a second of the raw forward by round. One batch size for all of them: the best of each look would be the
    luckiest one."""
    looks = [look[rates] for one in rounds for look in one["limit"]]
    best = max(looks[0], key=lambda batch: sum(look[batch] for look in looks))
    return [statistics.mean(look[rates][best] for look in one["limit"]) for one in rounds]


def median_ratio(rounds: list[Any], over: tuple[str, ...], level: int) -> float | None:
    """Requests per CPU second, ours to the best of `over`."""
    if not any(name in one for one in rounds for name in over):
        return None
    best = [max(one[name][level].per_cpu_s for name in over if name in one) for one in rounds]
    return float(statistics.median(one["ours"][level].per_cpu_s / rate for one, rate in zip(rounds, best, strict=True)))


def lower(rounds: list[Any], *over: str) -> float | None:
    ratios = [ratio for level in (8, 32) if (ratio := median_ratio(rounds, over, level)) is not None]
    return min(ratios, default=None)


def summary(tiny: list[Any], resnet: list[Any]) -> dict[str, Any]:
    def of_limit(rates: str, ours: Callable[[Measured], float]) -> float | None:
        pairs = list(zip(resnet, limits_of(resnet, rates), strict=True)) if resnet else []
        ratios = [
            statistics.median(ours(one["ours"][level]) / limit for one, limit in pairs) for level in (8, 32) if pairs
        ]
        return min(ratios, default=None)

    at_8 = [one["ours"][8].load for one in resnet]
    busiest = [one["ours"][200].load.rate / one["ours"][32].load.rate for one in tiny]
    return {
        "tiny_of_bare": lower(tiny, "bare"),
        "tiny_over_litserve": lower(tiny, "litserve", "litserve8"),
        "tiny_over_bentoml": lower(tiny, "bentoml"),
        "tiny_over_ray": lower(tiny, "ray"),
        "tiny_over_fastapi": median_ratio(tiny, ("fastapi",), 32),
        "resnet18_of_limit": of_limit("rates", lambda one: one.per_cpu_s),
        "resnet18_of_limit_wall": of_limit("wall_rates", lambda one: one.load.rate),
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
        heavy = Path(folder) / "resnet18"
        resnet = rounds_of(config, heavy, config.resnet_servers, three) if config.resnet_servers else []
        say(**summary(tiny, resnet))
    return 0


if __name__ == "__main__":
    sys.exit(main())
