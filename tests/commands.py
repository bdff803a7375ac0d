"""The commands as a user runs them: in a process of their own, with a Ray of their own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 240  # a bound for a hanging command, not a claim about speed


class Command:
    """A running command whose output is gathered line by line."""

    def __init__(
        self,
        *arguments: str,
        program: str = sys.executable,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [program, *arguments],
            cwd=cwd or ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a signal for it is not one for the tests
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        """A test that fails leaves nothing running."""
        if self._process.poll() is None:
            self.ctrl_c()
            self.end()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(iter(self._process.stdout.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Until a line matches; fails with all that was printed if the command ends before."""
        return self.wait_until(lambda: re.search(pattern, self.text), f"a line like {pattern!r}")

    def wait_until(self, ready: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = ready()
            if found:
                return found
            if self._process.poll() is not None and not self._reader.is_alive():
                raise AssertionError(f"ended with {self._process.returncode} before {what}:\n{self.text}")
            time.sleep(0.1)
        self.signal(signal.SIGKILL)
        raise AssertionError(f"no {what} in {PATIENCE_S} s:\n{self.text}")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ctrl_c(self) -> None:
        """To the command and all that it started in the foreground, as a terminal does."""
        os.killpg(self._process.pid, signal.SIGINT)

    def end(self) -> int:
        """Wait for the end; the exit code."""
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"did not end in {PATIENCE_S} s:\n{self.text}") from None
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code


def run(*arguments: str, code: int = 0, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command to its end, see the exit code, return what it printed."""
    command = Command(*arguments, cwd=cwd, env=env)
    ended = command.end()
    assert ended == code, f"exit code {ended}, expected {code}:\n{command.text}"
    return command.text
