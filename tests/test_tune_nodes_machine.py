"""Telling never ends a service of a node, and a machine's end is asked for as EC2 understands it."""

import shutil
import subprocess
import sys
from typing import Any

import pytest

from tune.nodes.machine import say, shut_down, warn

TROUBLES = [OSError(28, "No space left on device"), subprocess.TimeoutExpired("wall", 10)]


class Full:
    """A log on a disk that is full."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_does_not_end_who_writes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    say("nobody reads this")
    warn("nor this")


@pytest.mark.parametrize("trouble", TROUBLES, ids=["no-room", "hangs"])
def test_a_terminal_that_hangs_does_not_end_who_warns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: Exception
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise trouble

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", run)
    warn("this cluster ends")
    shut_down("EC2 does not answer")
    told = capsys.readouterr().out
    assert "this cluster ends" in told
    assert "it does not shut down" in told


@pytest.mark.parametrize("code", [0, 1])
def test_the_machine_is_shut_down_without_a_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        asked.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)
    shut_down("the head is gone")
    assert asked == [["sudo", "-n", "shutdown", "-h", "now"]]
    assert ("exit code 1" in capsys.readouterr().out) == bool(code)
