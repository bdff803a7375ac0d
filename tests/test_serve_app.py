"""python serve/app.py as a user runs it: its own Ray, one address, and nothing left when it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from data.errors import UserError
from serve.settings import EndpointConfig, ServeConfig
from tests.serving import free_port, picture

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's own folder; short, because the path of a Unix socket may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="er", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(*arguments: str, ray_folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "serve" / "app.py"), *arguments],
        env={**os.environ, "RAY_TMPDIR": str(ray_folder), "RAY_ADDRESS": "127.0.0.1:1"},
        cwd=ray_folder, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def processes_naming(folder: Path) -> list[str]:
    """Command lines of running processes that mention a folder, as all of a Ray session's do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line[:200])
    return found


def listening_on(port: int) -> set[str]:
    """The local addresses, as /proc/net/tcp writes them, that listen on a port."""
    rows = [row.split() for file in ("tcp", "tcp6") for row in Path(f"/proc/net/{file}").read_text().splitlines()[1:]]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}


@pytest.mark.ray
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped_and_leaves_nothing(
    tiny_bundle: str, ray_folder: Path, stop: signal.Signals
) -> None:
    port = free_port()
    process = start("--bundle", tiny_bundle, "--port", str(port), "--shutdown-s", "1", ray_folder=ray_folder)
    try:
        url = f"http://127.0.0.1:{port}"
        said = announcement(process)
        assert f"curl --data-binary @photo.jpg {url}/predict" in said
        assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
        answer = httpx.post(f"{url}/predict", content=picture(1), timeout=30)
        assert answer.status_code == 200
        assert "label" in answer.json()["predictions"][0]
        assert listening_on(port) == {"0100007F"}  # 127.0.0.1 and nothing else
        assert len(processes_naming(ray_folder)) > 2
        if stop is signal.SIGINT:
            os.killpg(process.pid, stop)  # as a terminal does: the whole group hears it
        else:
            process.send_signal(stop)  # as a supervisor does
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "stopping" in out
    assert "Traceback" not in err
    end = time.monotonic() + 30  # killed children may take a moment to be reaped
    while (left := processes_naming(ray_folder)) and time.monotonic() < end:
        time.sleep(0.2)
    assert left == []


def announcement(process: subprocess.Popen[str]) -> str:
    """What the command prints up to its last line before it waits."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            return "".join(lines)
    raise AssertionError(f"it ended early: {lines} {process.communicate()[1]}")


def refusal(process: subprocess.Popen[str]) -> str:
    """The one line of a command that refuses to start."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, (out, err)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_a_missing_or_broken_bundle_is_one_line_before_ray_starts(
    tiny_bundle: str, ray_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "no bundle there" in refusal(start("--bundle", "nowhere", ray_folder=ray_folder))
    assert "damaged" in refusal(start("--bundle", str(broken), ray_folder=ray_folder))
    assert list(ray_folder.iterdir()) == []


def test_a_taken_port_is_one_line(tiny_bundle: str, ray_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}" in refusal(start("--bundle", tiny_bundle, "--port", port, ray_folder=ray_folder))
    assert list(ray_folder.iterdir()) == []


def test_a_setting_that_cannot_be_is_refused(tiny_bundle: str, ray_folder: Path) -> None:
    process = start("--bundle", tiny_bundle, "--max-replicas", "0", ray_folder=ray_folder)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "max_replicas must be >= 1" in out + err


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            ServeConfig(EndpointConfig("b"), cpus_per_replica=3),
            "1 x 3 CPU do not fit .* has 2; lower --cpus-per-replica",
        ),
        (ServeConfig(EndpointConfig("b"), min_replicas=4, max_replicas=4), "4 x 1 CPU do not fit"),
        (ServeConfig(EndpointConfig("b", device="cuda")), "1 x 1 GPU do not fit .* has 0; .*--device cpu"),
    ],
)
def test_replicas_that_this_machine_can_never_hold_are_refused(config: ServeConfig, complaint: str) -> None:
    from serve.local import refuse_impossible

    with pytest.raises(UserError, match=complaint):
        refuse_impossible(config, {"CPU": 2.0, "memory": 1e9})
    refuse_impossible(config, {"CPU": 4.0, "GPU": 1.0})


def test_the_first_read_of_a_bundle_keeps_its_copy_where_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve import local

    asked = []

    def read(bundle: str, *, cache_dir: str = "") -> None:
        asked.append(cache_dir)
        raise UserError("stop here, before Ray")

    monkeypatch.setattr(local, "read_bundle", read)
    with pytest.raises(UserError, match="stop here"):
        local.serve_until_stopped(ServeConfig(EndpointConfig("s3://b/m", cache_dir=str(tmp_path))))
    assert asked == [str(tmp_path)]
