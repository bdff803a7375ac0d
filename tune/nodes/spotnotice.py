"""On each worker: when EC2 gives notice that it takes this spot machine back, drain its Ray node before it does.

Ray does not read the notice. A drained node gets no new work; Ray Train goes on from its checkpoint elsewhere, and
Serve moves its replicas. EC2 gives two minutes, on a metadata page that is 404 until then. And when the head is gone,
which alone ends workers, this ends its own machine. Standard library; Ray is imported only by the process that drains,
since this one should cost a worker nothing all the hours before.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from typing import Final

from tune.nodes.machine import say, shut_down

IMDS: Final = "http://169.254.169.254"
NOTICE: Final = "/latest/meta-data/spot/instance-action"
REBALANCE: Final = "/latest/meta-data/events/recommendations/rebalance"
_TOKEN: Final = "/latest/api/token"
_TOKEN_SECONDS: Final = 21600  # the longest that there is
_EVERY: Final = 3.0
# While a notice stands the node is drained again: a raylet that was restarted meanwhile knows of nothing.
_AGAIN: Final = 20.0
# Where the notice has no time that can be read: two minutes are promised, and some may be over.
_UNTOLD: Final = 110.0
# Ray must be done before the machine is gone.
_MARGIN: Final = 5.0
_HEAD_EVERY: Final = 15.0
# Longer than Ray's restart on the head, or the head's reboot, takes; a quarter of an hour of a worker is a few cents.
_ALONE: Final = 15 * 60.0
_CONNECT: Final = 3.0


class Metadata:
    """EC2's instance metadata, by its second version: each page against a token that is fetched when needed."""

    def __init__(self, url: str = IMDS, *, timeout: float = 2.0) -> None:
        self._url, self._timeout, self._token = url, timeout, ""
        # The address is this machine's own: a proxy of the environment must not see the request.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, page: str) -> str | None:
        """The page's text; None where there is none (404). `OSError` where the service does not answer."""
        for fresh in (False, True):
            if fresh or not self._token:
                seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                self._token = self._ask("PUT", _TOKEN, seconds)
            try:
                return self._ask("GET", page, {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or fresh:  # 401: the token's time is over
                    raise
        raise AssertionError

    def _ask(self, method: str, page: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self._url + page, method=method, headers=headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.HTTPError as error:
            error.close()
            raise


class Watch:
    """Looks at the metadata; `drain(seconds)` is called on a notice and says whether Ray took it."""

    def __init__(
        self,
        get: Callable[[str], str | None],
        drain: Callable[[int], bool],
        *,
        clock: Callable[[], float] = time.time,
        log: Callable[[str], None] = say,
    ) -> None:
        self._get, self._drain, self._clock, self._log = get, drain, clock, log
        self._heard: set[str] = set()
        self._drained = -float("inf")
        self._silent = False

    def look(self) -> None:
        """One look. Never raises for a service that is slow or away: the next look is seconds off."""
        # The notice first, and obeyed before anything else is asked: trouble with the other page must not hide it.
        troubles = [self._read(NOTICE, self._obey), self._read(REBALANCE, self._advised)]
        trouble = next(filter(None, troubles), "")
        if trouble and not self._silent:
            self._log(f"the metadata service does not answer ({trouble}); asking again")
        self._silent = bool(trouble)

    def _read(self, page: str, act: Callable[[str], None]) -> str:
        """Why the page could not be read; "" where it could, and what it says was acted on."""
        try:
            text = self._get(page)
        except (OSError, http.client.HTTPException, ValueError) as error:  # cut off, or no text
            return str(error) or type(error).__name__
        if text:
            act(text)
        return ""

    def _advised(self, advice: str) -> None:
        """Only a hint, often hours ahead or never followed by a notice: to move then would cost more than it saves."""
        self._say(advice, f"EC2 recommends to rebalance: {advice}")

    def _obey(self, notice: str) -> None:
        self._say(notice, f"EC2 takes this machine back: {notice}")
        now = self._clock()
        if now - self._drained < _AGAIN:
            return
        seconds = int(max(deadline(notice, now) - now - _MARGIN, 1))
        if self._drain(seconds):
            self._log(f"drained, with {seconds} s to go")
            self._drained = now

    def _say(self, key: str, text: str) -> None:
        if key not in self._heard:
            self._heard.add(key)
            self._log(text)


class Head:
    """The head, as far as it can be connected to; `end` is called once it could not be for `_ALONE` without a break.

    The autoscaler and the time to live, which end workers, both run on the head: when it is lost, nobody else does.
    """

    def __init__(
        self,
        connects: Callable[[], bool],
        end: Callable[[], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connects, self._end, self._clock = connects, end, clock
        self._asked = -float("inf")
        self._alone_since: float | None = None

    def look(self) -> None:
        """One look, every `_HEAD_EVERY`. `end` is called again at each look after the first: it may have failed."""
        now = self._clock()
        if now - self._asked < _HEAD_EVERY:
            return
        self._asked = now
        if self._connects():
            self._alone_since = None
            return
        if self._alone_since is None:
            self._alone_since = now
        if now - self._alone_since >= _ALONE:
            self._end()


def connects(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT):
            return True
    except OSError:
        return False


def deadline(notice: str, now: float) -> float:
    """When the machine is gone (seconds since 1970), by a notice such as {"action": "terminate", "time": "...Z"}."""
    try:
        return datetime.fromisoformat(json.loads(notice)["time"]).timestamp()
    except (ValueError, KeyError, TypeError):
        return now + _UNTOLD


def drain_here(address: str, seconds: int) -> bool:
    """In a process of its own, drain the Ray nodes of this machine; False where Ray did not take it."""
    command = [sys.executable, os.path.abspath(__file__), "--address", address, "--drain", str(seconds)]
    try:
        return subprocess.run(command, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def drain_by_ray(address: str, seconds: int) -> int:
    """What `ray drain-node` does, for the nodes that are alive at this machine's address. The number of those."""
    from ray._private.services import get_node_ip_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

    gcs, mine = GcsClient(address=address), get_node_ip_address(address)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    until = time.time_ns() // 1_000_000 + seconds * 1000
    drained = 0
    for node_id, node in gcs.get_all_node_info().items():
        if node.state == GcsNodeInfo.ALIVE and node.node_manager_address == mine:
            taken, refusal = gcs.drain_node(node_id.hex(), reason, "EC2 takes the spot machine back", until)
            print(f"node {node_id.hex()}: {'drains' if taken else refusal}", flush=True)
            drained += taken
    return drained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="the GCS of the head, HOST:PORT")
    parser.add_argument("--imds", default=IMDS, help=argparse.SUPPRESS)
    parser.add_argument("--drain", type=int, help="drain the nodes of this machine now, with so many seconds to go")
    given = parser.parse_args()
    if given.drain is not None:
        return 0 if drain_by_ray(given.address, given.drain) else 1
    watch = Watch(Metadata(given.imds).get, lambda seconds: drain_here(given.address, seconds))
    why = f"the head ({given.address}) could not be reached for {_ALONE / 60:.0f} minutes"
    head = Head(lambda: connects(given.address), lambda: shut_down(why))
    say("watching for EC2's notice")
    while True:
        watch.look()
        head.look()
        time.sleep(_EVERY)


if __name__ == "__main__":
    sys.exit(main())
