"""A machine whose set-up does not come to its end ends itself; one that is kept by a service is left at work."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, with_envs

ROOT = Path(__file__).resolve().parents[1]
CONFIG: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
ARM, DISARM = ["-n", "shutdown", "-h", "+60"], ["-n", "shutdown", "-c"]


class Node:
    """A home folder, and a sudo that writes down what it is asked and does none of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, folder / "asked"
        (folder / "bin").mkdir()
        (folder / ".eagleray").mkdir()  # as keep.sh and the set-up make it
        self.let_sudo_exit(0)

    def let_sudo_exit(self, code: int) -> None:
        program = self.folder / "bin" / "sudo"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{self.asked}\nexit {code}\n')
        program.chmod(0o755)

    def run(self, command: str) -> list[list[str]]:
        """A command as Ray's launcher gives it to the node's shell; what sudo was asked."""
        self.asked.write_text("")
        environ = {"HOME": str(self.folder), "PATH": f"{self.folder}/bin:/usr/bin:/bin"}
        whole = with_envs([command], {"RAY_HEAD_IP": "10.0.0.1"})[0]
        subprocess.run(["bash", "-c", f"true && ({whole})"], check=True, env=environ)
        return [line.split() for line in self.asked.read_text().splitlines()]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def disarming(kind: str) -> str:
    (command,) = [each for each in CONFIG[f"{kind}_start_ray_commands"] if "shutdown -c" in each]
    return str(command)


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_the_end_is_set_before_anything_is_set_up_and_called_off_once_a_service_keeps_the_node(
    node: Node, kind: str
) -> None:
    setup = CONFIG[f"{kind}_setup_commands"]
    assert node.run(setup[0]) == [ARM]
    assert not any("shutdown" in command for command in setup[1:])
    assert node.run(disarming(kind)) == [DISARM]


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_a_set_up_that_is_repeated_on_a_node_at_work_does_not_end_it(node: Node, kind: str) -> None:
    """`ray up --no-restart` runs the set-up and no start commands: nothing would call the end off."""
    node.run(disarming(kind))
    assert node.run(CONFIG[f"{kind}_setup_commands"][0]) == []


def test_a_set_up_that_failed_and_is_tried_again_sets_the_end_again(node: Node) -> None:
    command = CONFIG["head_setup_commands"][0]
    assert node.run(command) + node.run(command) == [ARM, ARM]


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_where_no_shutdown_can_be_planned_the_cluster_comes_up_all_the_same(node: Node, kind: str) -> None:
    node.let_sudo_exit(1)
    node.run(CONFIG[f"{kind}_setup_commands"][0])
    node.run(disarming(kind))


def test_the_end_is_called_off_only_behind_what_takes_its_place() -> None:
    head, worker = (CONFIG[f"{kind}_start_ray_commands"] for kind in ("head", "worker"))
    first, *_ = [number for number, command in enumerate(head) if "keep.sh timetolive" in command]
    assert head.index(disarming("head")) == first + 1
    places = [number for number, command in enumerate(worker) if " ray start " in command or "spotnotice" in command]
    assert worker.index(disarming("worker")) > max(places)
