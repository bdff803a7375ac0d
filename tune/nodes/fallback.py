"""On the head: when EC2 has not got a type of machine the next one is asked for, and when it has got none, one is told.

Ray's autoscaler takes the type of the highest `priority` and, when its launch fails, takes it again five seconds later,
for ever. But it reads its configuration anew at each round. So this service follows the autoscaler's log and lowers the
priority of a type whose launch failed, for ten minutes: spot gives way to another spot type and at last to on-demand,
and comes back. Who failed lately ranks below who failed earlier, so that all are tried in turn. Standard library only.
"""

import argparse
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune.nodes.machine import say

LOGS: Final = Path("/tmp/ray/session_latest/logs")
NEWS: Final = "monitor-eagleray.log"
"""There, beside the autoscaler's own: what `ray monitor` shows, and what a running search prints."""
_EVERY: Final = 1.0
_FORGET: Final = 600.0  # seconds after which a type counts as before
_REMIND: Final = 300.0
# A step that no priority of a file comes near: whether a number was lowered, and from what, can be told from it.
_STEP: Final = 1000
_FAILED: Final = re.compile(r"Failed to launch (\d+) nodes of type (\S+): (.*)")
_CODE: Final = re.compile(r"\((\w+)\)")
_LAUNCHED: Final = re.compile(r"Launched (\d+) nodes of type (\S+)\.")

Log = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a line of the autoscaler's log says of a launch. `reason` is EC2's own name for the refusal, "" for none."""

    node_type: str
    reason: str


def outcome(line: str) -> Outcome | None:
    """None for a line about something else."""
    if found := _FAILED.search(line):
        code = _CODE.search(found[3])
        return Outcome(found[2], code[1] if code else found[3][:200] or "no reason given")
    found = _LAUNCHED.search(line)
    return Outcome(found[2], "") if found else None


class Priorities:
    """The priorities of the worker types of an autoscaler's configuration, as failures move them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[float, str]] = {}  # type -> when last, and why
        self._told = -float("inf")

    def note(self, seen: Outcome) -> None:
        """A launch that worked clears its type."""
        self._failures.pop(seen.node_type, None)
        if seen.reason:
            self._failures[seen.node_type] = (self._clock(), seen.reason)

    def apply(self, config: dict[str, Any]) -> dict[str, int]:
        """Set the priorities in `config`; those that changed, with their new value."""
        self._forget()
        ranks = {kind: rank for rank, kind in enumerate(self._failures, 1)}  # in the order of the failures
        changed = {}
        for name, kind in _workers(config):
            lowered = original(kind.get("priority", 0)) - _STEP * ranks.get(name, 0)
            if lowered != kind.get("priority", 0):
                changed[name] = kind["priority"] = lowered
        return changed

    def exhausted(self, config: dict[str, Any]) -> str:
        """What to tell when no type is to be had: at most every five minutes, else ""."""
        self._forget()
        now, kinds = self._clock(), [name for name, _ in _workers(config)]
        if not kinds or not all(name in self._failures for name in kinds) or now - self._told < _REMIND:
            return ""
        self._told = now
        reasons = ", ".join(f"{name} ({self._failures[name][1]})" for name in kinds)
        return (
            f"No worker can be launched: {reasons}. Each is tried again in turn. What helps: more zones (SubnetIds) or "
            "types in cluster.yaml, or another region; a higher quota for VcpuLimitExceeded and "
            "MaxSpotInstanceCountExceeded."
        )

    def _forget(self) -> None:
        """Old failures no longer count."""
        now = self._clock()
        self._failures = {kind: entry for kind, entry in self._failures.items() if now - entry[0] < _FORGET}


def original(priority: int) -> int:
    """The priority that the file was written with; lowered ones are whole steps below."""
    return (priority + _STEP // 2) % _STEP - _STEP // 2


def _workers(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, kind in config["available_node_types"].items():
        if name != config.get("head_node_type") and kind.get("max_workers", 1) > 0:
            yield name, kind


class Tail:
    """New lines of a file that may be rotated, replaced by a new session's, or not there yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._part = path, -1, ""
        self._at = 0

    def lines(self) -> list[str]:
        """Whole lines since the last call; at the first call those of the whole file."""
        try:
            now = self._path.stat()
            if now.st_ino != self._file or now.st_size < self._at:
                self._file, self._at, self._part = now.st_ino, 0, ""
            with self._path.open(encoding="utf-8", errors="replace") as file:
                file.seek(self._at)
                text = self._part + file.read()
                self._at = file.tell()
        except OSError:
            return []
        *whole, self._part = text.split("\n")
        return whole


class Service:
    """Log in, configuration and messages out; one call of `turn` a second."""

    def __init__(self, config: Path, logs: Path, log: Log, clock: Callable[[], float] = time.time) -> None:
        self._config, self._logs, self._log = config, logs, log
        self._tail, self._priorities = Tail(logs / "monitor.log"), Priorities(clock)
        self._tail.lines()  # what failed before this service began is old

    def turn(self) -> None:
        """Read what is new and act on it."""
        for line in self._tail.lines():
            if seen := outcome(line):
                self._priorities.note(seen)
        try:
            config = json.loads(self._config.read_text())  # Ray writes it as JSON
        except (OSError, ValueError):
            return  # not there yet, or being written by `ray up`: the next turn is a second off
        if changed := self._priorities.apply(config):
            draft = self._config.with_name(self._config.name + ".new")
            draft.write_text(json.dumps(config))
            draft.chmod(0o600)
            os.replace(draft, self._config)  # the autoscaler reads the whole of one or of the other
            self._log(f"priorities now: {', '.join(f'{name} {value}' for name, value in changed.items())}")
        if message := self._priorities.exhausted(config):
            self._tell(message)

    def _tell(self, message: str) -> None:
        """To the log that `ray monitor` shows, and as an event, which Ray prints in every running search and job."""
        self._log(message)
        event = {
            "event_id": uuid.uuid4().hex[:36],
            "source_type": "AUTOSCALER",
            "source_hostname": os.uname().nodename,
            "source_pid": os.getpid(),
            "severity": "WARNING",
            "label": "",
            "message": message,
            "timestamp": str(int(time.time())),
            "custom_fields": {},
        }
        try:
            with (self._logs / NEWS).open("a", encoding="utf-8") as file:
                file.write(time.strftime("%Y-%m-%d %H:%M:%S ") + message + "\n")
            with (self._logs / "events" / "event_AUTOSCALER.log").open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            self._log(f"could not be told in Ray's logs: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path.home() / "ray_bootstrap_config.yaml")
    parser.add_argument("--logs", type=Path, default=LOGS, help="Ray's log folder")
    given = parser.parse_args()
    service = Service(given.config, given.logs, say)
    say(f"following {given.logs / 'monitor.log'}")
    while True:
        service.turn()
        time.sleep(_EVERY)


if __name__ == "__main__":
    sys.exit(main())
