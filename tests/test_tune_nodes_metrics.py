"""Prometheus that cannot be installed is told of, and the cluster comes up without it."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tune" / "nodes" / "metrics.sh"
# What the script needs until it comes to Prometheus.
TOOLS = ("bash", "dirname", "mkdir", "seq", "cat")


def run(folder: Path, *, wanted: str, sudo: str) -> subprocess.CompletedProcess[str]:
    """The script on a machine that has no Prometheus; `sudo` are the lines of its sudo."""
    tools = folder / "bin"
    tools.mkdir()
    for name in TOOLS:
        (place,) = [path for path in (f"/usr/bin/{name}", f"/bin/{name}") if os.access(path, os.X_OK)][:1]
        (tools / name).symlink_to(place)
    for name, text in (("sudo", sudo), ("sleep", "exit 0")):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    environ = {"HOME": str(folder), "PATH": str(tools), "EAGLERAY_METRICS": wanted}
    command = ["/bin/bash", str(SCRIPT)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("refused", ["update", "install"])
def test_a_failed_installation_is_told_and_does_not_fail_the_start(tmp_path: Path, refused: str) -> None:
    # Where only the list is not renewed, the installation is tried all the same, and then it is that which fails here.
    sudo = f'echo "$@" >>{tmp_path}/asked; [[ "$*" != *{refused}* && "$*" != *install* ]]'
    done = run(tmp_path, wanted="1", sudo=sudo)
    assert done.returncode == 0, done.stderr
    assert "Prometheus could not be installed" in done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.rpartition("-qq ")[2].split()[0] for line in asked] == ["update", "install"]
    assert all(line.startswith("apt-get -o DPkg::Lock::Timeout=300 ") for line in asked)


def test_nothing_is_done_where_it_was_not_asked_for(tmp_path: Path) -> None:
    done = run(tmp_path, wanted="0", sudo="exit 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / ".eagleray").exists()
