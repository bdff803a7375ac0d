"""A type that EC2 has not got gives way to the next one, comes back later, and where none is to be had one is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from tune.nodes.fallback import Outcome, Service, original, outcome

REFUSED = (
    "2026-01-01 00:00:00,000 INFO node_provider.py:428 -- Failed to launch 1 nodes of type {}: Node Launch Exception "
    "(InsufficientInstanceCapacity): We currently do not have sufficient capacity in the zone you requested.\n"
)
LAUNCHED = "2026-01-01 00:00:00,000 INFO node_provider.py:420 -- Launched 1 nodes of type {}.\n"


class Lab:
    """A head's files, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.now, self.logs, self.config = 1000.0, folder / "logs", folder / "config.yaml"
        (self.logs / "events").mkdir(parents=True)
        (self.logs / "monitor.log").touch()
        kinds = {"head": {}, "a": {"priority": 60}, "b": {"priority": 50, "max_workers": 2}, "c": {"max_workers": 2}}
        self.config.write_text(json.dumps({"head_node_type": "head", "available_node_types": kinds}))
        self.lines: list[str] = []
        self.service = self.begin()

    def begin(self) -> Service:
        return Service(self.config, self.logs, self.lines.append, clock=lambda: self.now)

    def happens(self, text: str, *kinds: str, after: float = 1.0) -> dict[str, int]:
        self.now += after
        with (self.logs / "monitor.log").open("a") as file:
            file.writelines(text.format(kind) for kind in kinds)
        self.service.turn()
        return self.priorities

    @property
    def priorities(self) -> dict[str, int]:
        kinds: dict[str, Any] = json.loads(self.config.read_text())["available_node_types"]
        return {name: kind.get("priority", 0) for name, kind in kinds.items() if name != "head"}

    @property
    def order(self) -> list[str]:
        return sorted(self.priorities, key=lambda name: -self.priorities[name])

    @property
    def events(self) -> list[dict[str, Any]]:
        file = self.logs / "events" / "event_AUTOSCALER.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_type_that_failed_comes_after_those_that_did_not(lab: Lab) -> None:
    assert lab.order == ["a", "b", "c"]
    lab.happens(REFUSED, "a")
    assert lab.order == ["b", "c", "a"]


def test_when_all_failed_they_are_tried_in_turn(lab: Lab) -> None:
    lab.happens(REFUSED, "a", "b", "c")
    for first in ("a", "b", "c", "a"):
        assert lab.order[0] == first
        lab.happens(REFUSED, first)


def test_a_launch_that_works_clears_its_type(lab: Lab) -> None:
    lab.happens(REFUSED, "a")
    assert lab.happens(LAUNCHED, "a") == {"a": 60, "b": 50, "c": 0}


def test_failures_are_forgotten(lab: Lab) -> None:
    lab.happens(REFUSED, "a")
    lab.happens("nothing\n", "x", after=700)
    assert lab.priorities == {"a": 60, "b": 50, "c": 0}


def test_a_restart_of_the_service_knows_what_the_file_said_at_first(lab: Lab) -> None:
    lab.happens(REFUSED, "a", "b")
    assert lab.priorities == {"a": -940, "b": -1950, "c": 0}
    lab.service = lab.begin()
    lab.happens("nothing\n", "x")
    assert lab.priorities == {"a": 60, "b": 50, "c": 0}


@pytest.mark.parametrize("priority", [0, 1, 60, 499, -499])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_lowered_priority_tells_the_original(priority: int, steps: int) -> None:
    assert original(priority - 1000 * steps) == priority


def test_one_message_when_nothing_is_to_be_had(lab: Lab) -> None:
    lab.happens(REFUSED, "a", "b")
    assert lab.events == []
    for _ in range(20):
        lab.happens(REFUSED, "c", after=10)
    (event,) = lab.events
    assert "a (InsufficientInstanceCapacity)" in event["message"]
    assert "another region" in event["message"]
    lab.happens(REFUSED, "a", "b", "c", after=200)
    assert len(lab.events) == 2, "again after five minutes"
    assert "No worker can be launched" in (lab.logs / "monitor-eagleray.log").read_text()


def test_the_message_is_one_that_ray_prints_in_a_running_job(lab: Lab) -> None:
    from ray._private.event.event_logger import filter_event_by_level, parse_event
    from ray._private.ray_constants import RAY_LOG_TO_DRIVER_EVENT_LEVEL

    lab.happens(REFUSED, "a", "b", "c")
    event = parse_event((lab.logs / "events" / "event_AUTOSCALER.log").read_text())
    assert event is not None
    assert event.message.startswith("No worker")
    assert not filter_event_by_level(event, RAY_LOG_TO_DRIVER_EVENT_LEVEL)


def test_a_new_session_of_ray_has_a_new_log(lab: Lab) -> None:
    (lab.logs / "monitor.log").unlink()
    lab.service.turn()
    lab.happens(REFUSED, "a")
    assert lab.order == ["b", "c", "a"]


def test_half_a_line_and_half_a_configuration_wait_for_the_other_half(lab: Lab) -> None:
    whole, text = REFUSED.format("a"), lab.config.read_text()
    lab.config.write_text(text[:40])
    for part in (whole[:80], whole[80:]):
        with (lab.logs / "monitor.log").open("a") as file:
            file.write(part)
        lab.service.turn()
    lab.config.write_text(text)
    lab.service.turn()
    assert lab.order == ["b", "c", "a"]


def test_other_lines_say_nothing() -> None:
    assert outcome("Launching 1 nodes of type a.") is None
    assert outcome(LAUNCHED.format("a")) == Outcome("a", "")
    assert outcome("Failed to launch 1 nodes of type a: no such profile") == Outcome("a", "no such profile")
