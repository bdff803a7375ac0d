"""On the head: ends the cluster when its time or money is up: all workers by the cluster's tag, then the head itself.

The clock starts when EC2 launched the head, so neither a restart of Ray nor one of this service starts it anew. The
money is what all machines with the cluster's tag cost since then, by dated list prices.
Standard library and boto3: it needs neither Ray nor the laptop that started the cluster.
"""

import argparse
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from tune.nodes.bill import Ledger, Machine, Prices
from tune.nodes.machine import say, shut_down, warn

IMDS: Final = "http://169.254.169.254"
_EVERY: Final = 10.0
_WARN_SECONDS: Final = 15 * 60
_ALIVE: Final = ("pending", "running", "stopping", "stopped")
# Seconds without an answer of EC2 until the head is shut down, which terminates it by its configuration.
_PATIENCE: Final = 300.0
# EC2's list of machines lags behind its launches: a worker that one list leaves out would have nobody to end it.
_EMPTY_LISTS: Final = 2
_BETWEEN_LISTS: Final = 20.0
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Log = Callable[[str], None]


class Cloud(Protocol):
    """EC2, as far as it is needed; each call may raise anything that botocore does."""

    def machines(self, now: float) -> list[Machine]: ...
    def terminate(self, ids: Sequence[str]) -> None: ...


class Ec2:
    """The instances that carry the cluster's tag."""

    def __init__(self, region: str, cluster: str) -> None:
        import boto3
        from botocore.config import Config

        # Short timeouts: it is asked again and again, and a minute is what the end may take.
        config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
        self._client = boto3.client("ec2", region_name=region, config=config)
        self._filters = [{"Name": "tag:ray-cluster-name", "Values": [cluster]}]

    def machines(self, now: float) -> list[Machine]:
        """All that EC2 still shows: terminated ones for about an hour."""
        pages = self._client.get_paginator("describe_instances").paginate(Filters=self._filters)
        return [_machine(one, now) for page in pages for group in page["Reservations"] for one in group["Instances"]]

    def terminate(self, ids: Sequence[str]) -> None:
        """Ask for their end; done when EC2 has taken the request."""
        self._client.terminate_instances(InstanceIds=list(ids))


def _machine(one: dict[str, Any], now: float) -> Machine:
    launched = one["LaunchTime"].timestamp()
    alive = one["State"]["Name"] in _ALIVE
    market = "spot" if one.get("InstanceLifecycle") == "spot" else "on-demand"
    ended = now if alive else _ended(one.get("StateTransitionReason") or "", launched, now)
    return Machine(one["InstanceId"], one["InstanceType"], market, launched, ended, alive)


def _ended(reason: str, launched: float, now: float) -> float:
    """EC2 tells the end in a text such as `User initiated (2026-11-22 10:00:00 GMT)`; where it does not: now."""
    found = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)", reason)
    when = datetime.fromisoformat(found[1]).replace(tzinfo=UTC).timestamp() if found else now
    return min(max(when, launched), now)


@dataclass(frozen=True)
class Limits:
    """Seconds from the head's launch, and USD; 0 is no limit."""

    ttl: float
    max_usd: float

    def seconds_left(self, ledger: Ledger, prices: Prices, now: float) -> tuple[float, str]:
        """How long the cluster may go on at its present size, and what ends it; infinity where nothing does."""
        left = [(float("inf"), "")]
        if self.ttl:
            left.append((ledger.started + self.ttl - now, f"its {self.ttl / 3600:g} hours are over"))
        if self.max_usd:
            rest, rate = self.max_usd - ledger.usd(prices, now), ledger.usd_per_hour(prices)
            rest_of_time = 0.0 if rest <= 0 else rest / rate * 3600 if rate else float("inf")
            left.append((rest_of_time, f"its {self.max_usd:g} USD are spent"))
        return min(left)


class Keeper:
    """Looks at the cluster every few seconds, warns a quarter of an hour before, and ends it."""

    def __init__(
        self, cloud: Cloud, ledger: Ledger, limits: Limits, prices: Prices, *, file: Path, log: Log, warn: Log
    ) -> None:
        self.ledger = ledger
        self._cloud, self._limits, self._prices = cloud, limits, prices
        self._file, self._log, self._warn = file, log, warn
        self._warned = False
        self._unreachable = False

    def look(self, now: float) -> str:
        """One look: why the cluster is to end now, "" while it may go on."""
        try:
            self.ledger.note(self._cloud.machines(now))
            self.ledger.save(self._file)
            self._unreachable = False
        except Exception as error:  # whatever it is, the time goes on and must end the cluster
            if not self._unreachable:
                self._log(f"EC2 does not tell the cluster's machines ({error}); asking again")
            self._unreachable = True
        left, why = self._limits.seconds_left(self.ledger, self._prices, now)
        if left <= 0:
            return why
        if left <= _WARN_SECONDS and not self._warned:
            self._warn(f"This cluster ends in {left / 60:.0f} minutes: {why} then. What is in the bucket stays.")
        self._warned = left <= _WARN_SECONDS
        return ""


def end_cluster(
    cloud: Cloud,
    head: str,
    *,
    stop_launches: Callable[[], None],
    shut_down: Callable[[], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Log,
) -> None:
    """Terminate the workers until there is none, then the head; as often and as long as it takes.

    The autoscaler is stopped before: while trials wait it would replace what is terminated. Returns when EC2 has taken
    the head's end.
    """
    begun, empty = clock(), 0
    stop_launches()
    while True:
        try:
            alive = [one.id for one in cloud.machines(clock()) if one.alive]
            workers = [one for one in alive if one != head]
            empty = 0 if workers else empty + 1
            if workers:
                log(f"terminating {len(workers)} worker(s): {', '.join(workers)}")
                cloud.terminate(workers)
                sleep(2.0)
            elif empty < _EMPTY_LISTS:
                sleep(_BETWEEN_LISTS)
            else:
                log("terminating the head")
                cloud.terminate([head])
                return
            stop_launches()  # somebody may have started Ray again
        except Exception as error:  # throttled, no network, credentials that are being renewed: try on
            log(f"not yet: {error}")
            if clock() - begun > _PATIENCE:
                shut_down()
            sleep(5.0)


def stop_autoscaler() -> None:
    """End Ray's autoscaler on this machine, if there is one: the only process that launches."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
            if any(word.endswith(b"/monitor.py") and b"/ray/autoscaler/" in word for word in words):
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except OSError:  # it ended by itself, or is not ours
            continue


def seconds(text: str) -> float:
    """8h, 90m, 1.5d, 45s, or plain hours; 0 is no limit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 8h, 90m or 2d")
    return float(found[1]) * _UNITS[found[2] or "h"]


def ask_imds(page: str, url: str = IMDS) -> str:
    """A page of this machine's metadata, by version 2."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    request = urllib.request.Request(f"{url}/latest/api/token", method="PUT", headers=wanted)
    with opener.open(request, timeout=5) as answer:
        token = answer.read().decode()
    page = f"{url}/latest/meta-data/{page}"
    with opener.open(urllib.request.Request(page, headers={"X-aws-ec2-metadata-token": token}), timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def main() -> int:
    here = Path(__file__).resolve()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", required=True, help="the value of the tag ray-cluster-name")
    parser.add_argument(
        "--ttl", type=seconds, default=0.0, help="time from the head's launch: 8h, 90m, 2d; 0: no limit"
    )
    parser.add_argument("--max-usd", type=float, default=0.0, help="what the machines may cost; 0: no limit")
    parser.add_argument("--prices", default=str(here.parents[1] / "prices.csv"))
    parser.add_argument("--state", type=Path, default=Path.home() / ".eagleray" / "timetolive.json")
    parser.add_argument("--imds", default=IMDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.ttl and not given.max_usd:
        say("no limit was given: this cluster ends by `ray down` only")
        return 0
    head, region = ask_imds("instance-id", given.imds), ask_imds("placement/region", given.imds)
    cloud, prices = Ec2(region, given.cluster), Prices.read(given.prices, region)
    ledger = Ledger.open(given.state, head, time.time())
    limits = Limits(given.ttl, given.max_usd)
    keeper = Keeper(cloud, ledger, limits, prices, file=given.state, log=say, warn=warn)
    limit = f"{given.ttl / 3600:g} h or {given.max_usd:g} USD (0: no limit)"
    say(f"cluster {given.cluster}, head {head}: ends after {limit}")
    while not (why := keeper.look(time.time())):
        time.sleep(_EVERY)
    warn(f"This cluster ends now: {why}.")
    end_cluster(
        cloud,
        head,
        stop_launches=stop_autoscaler,
        shut_down=lambda: shut_down("EC2 does not answer"),
        clock=time.time,
        sleep=time.sleep,
        log=say,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
