"""What keeps the services of a node running, where there is no systemd."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KEEP = Path(__file__).resolve().parents[1] / "tune" / "nodes" / "keep.sh"


class Home:
    """A user's folder, on a machine whose sudo refuses: the units of the real one are left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / ".eagleray"
        (folder / "bin").mkdir()
        refusing = folder / "bin" / "sudo"
        refusing.write_text("#!/bin/sh\nexit 1\n")
        refusing.chmod(0o755)

    def keep(self, name: str, *command: str) -> int:
        """Start a service; its process."""
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        subprocess.run(["bash", str(KEEP), name, *command], check=True, env={"HOME": str(self.folder), "PATH": path})
        pid = int((self.state / f"{name}.pid").read_text())
        until(lambda: not alive(pid) or os.getpgid(pid) == pid)  # it leads a group of its own in a moment
        return pid

    def log(self, name: str) -> str:
        file = self.state / f"{name}.log"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    for file in made.state.glob("*.pid"):
        if alive(pid := int(file.read_text())):
            os.killpg(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(so: Callable[[], bool]) -> None:
    for _ in range(400):
        if so():
            return
        time.sleep(0.025)
    pytest.fail("it never was so")


def test_a_command_that_fails_is_run_again_and_one_that_ends_well_is_not(home: Home) -> None:
    pid = home.keep(
        "one", "bash", "-c", "echo run with $1; [ -e $HOME/second ] && exit 0; touch $HOME/second; exit 3", "-", "a b"
    )
    until(lambda: not alive(pid))
    assert home.log("one").splitlines() == ["run with a b", "run with a b"]


def test_a_service_takes_the_place_of_the_one_before(home: Home) -> None:
    first = home.keep("two", "sleep", "1000")
    second = home.keep("two", "sleep", "1001")
    other = home.keep("three", "sleep", "1002")
    until(lambda: not alive(first))
    assert alive(second)
    assert alive(other)


def test_a_number_that_went_to_another_process_is_left_alone(home: Home) -> None:
    home.state.mkdir()
    bystander = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    (home.state / "four.pid").write_text(str(bystander.pid))
    home.keep("four", "sleep", "1000")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
