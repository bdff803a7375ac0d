"""python serve/app.py as a user runs it: a key, TLS, asleep when nobody calls, and nothing left when it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from data.errors import UserError
from serve import app
from serve.settings import EndpointConfig, ServeConfig
from tests.commands import ROOT
from tests.served import KEY, Served, served
from tests.serving import picture, write_certificate


def stop(running: Served, how: signal.Signals) -> None:
    """End it and see that nothing is left."""
    if how is signal.SIGINT:
        running.command.ctrl_c()  # as a terminal does: the whole group hears it
    else:
        running.command.signal(how)  # as a supervisor does
    assert running.command.end() == 0
    assert "stopping" in running.command.text
    assert "Traceback" not in running.command.text
    running.until_gone()
    assert not os.path.exists(running.note.folder)


def post(running: Served, key: str) -> int:
    with running.client(key) as client:
        return client.post("/predict", content=picture(1)).status_code


@pytest.mark.ray
def test_a_first_run_makes_a_key_sleeps_when_nobody_calls_and_wakes_for_all_who_do(
    tiny_bundle: str, tmp_path: Path
) -> None:
    options = ("--bundle", tiny_bundle, "--min-replicas", "0", "--max-replicas", "1", "--idle-s", "1")
    with served(*options, "--shutdown-s", "1", keys="", tls=write_certificate(tmp_path)) as running:
        (tmp_path / "photo.jpg").write_bytes(picture(1))
        (line,) = [line.strip() for line in running.said.splitlines() if "curl" in line]
        done = subprocess.run(f"{line} -s", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "label" in json.loads(done.stdout)["predictions"][0]
        assert post(running, key="") == 401
        found = re.search(r"Bearer (er_[\w-]+)'", line)
        assert found is not None
        key = found[1]
        assert key not in "".join(file.read_text(errors="replace") for file in logs(running))
        running.until_replicas(0)
        # Keys hold for those who wake it, too.
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda number: post(running, key if number % 4 else "er_wrong"), range(20)))
        assert answers == [200 if number % 4 else 403 for number in range(20)]
        stop(running, signal.SIGINT)


def logs(running: Served) -> Iterator[Path]:
    """Ray's own, of the endpoint's session."""
    return (file for file in Path(running.note.session_dir, "logs").rglob("*") if file.is_file())


@pytest.mark.ray
def test_it_answers_over_tls_behind_rays_own_proxy_and_ends_when_a_supervisor_says_so(
    tiny_bundle: str, tmp_path: Path
) -> None:
    options = ("--bundle", tiny_bundle, "--ingress", "python", "--shutdown-s", "1", "--max-replicas", "1")
    with served(*options, tls=write_certificate(tmp_path)) as running:
        assert running.note.url.startswith("https://127.0.0.1:")
        assert post(running, KEY) == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(running.note.url)
        with pytest.raises(httpx.HTTPError):
            httpx.get(running.note.url.replace("https", "http") + "/healthz")
        stop(running, signal.SIGTERM)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's own folder; short, because the path of a Unix socket may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="er", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def refusal(*arguments: str, ray_folder: Path, **environ: str) -> str:
    """The one line of a command that refuses to start."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "serve" / "app.py"), *arguments],
        env={**os.environ, "RAY_TMPDIR": str(ray_folder), "RAY_ADDRESS": "127.0.0.1:1", **environ},
        cwd=ray_folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(ray_folder.iterdir()) == []
    return done.stderr


def test_a_missing_or_broken_bundle_is_one_line_before_ray_starts(
    tiny_bundle: str, ray_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "no bundle there" in refusal("--bundle", "nowhere", ray_folder=ray_folder)
    assert "damaged" in refusal("--bundle", str(broken), ray_folder=ray_folder)


def test_a_taken_port_is_one_line(tiny_bundle: str, ray_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}" in refusal("--bundle", tiny_bundle, "--port", port, ray_folder=ray_folder)


def test_keys_that_cannot_be_read_are_one_line_that_shows_none(
    tiny_bundle: str, ray_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys.json").write_text(f'{{"version": 1, "keys": ["{KEY}"]')
    said = refusal("--bundle", tiny_bundle, "--keys", str(tmp_path / "keys.json"), ray_folder=ray_folder)
    assert "keys.json" in said
    assert KEY not in said


def test_a_setting_that_cannot_be_is_refused(tiny_bundle: str, ray_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "serve" / "app.py"), "--bundle", tiny_bundle, "--max-replicas", "0"],
        cwd=ray_folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "max_replicas must be >= 1" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            ServeConfig(EndpointConfig("b"), cpus_per_replica=3),
            "1 x 3 CPU do not fit .* has 2; lower --cpus-per-replica",
        ),
        (ServeConfig(EndpointConfig("b"), min_replicas=0, cpus_per_replica=3), "1 x 3 CPU do not fit"),
        (ServeConfig(EndpointConfig("b"), min_replicas=4, max_replicas=4), "4 x 1 CPU do not fit"),
        (ServeConfig(EndpointConfig("b", device="cuda")), "1 x 1 GPU do not fit .* has 0; .*--device cpu"),
    ],
)
def test_replicas_that_this_machine_can_never_hold_are_refused(config: ServeConfig, complaint: str) -> None:
    from serve.running.starting import refuse_impossible

    with pytest.raises(UserError, match=complaint):
        refuse_impossible(config, {"CPU": 2.0, "memory": 1e9})
    refuse_impossible(config, {"CPU": 4.0, "GPU": 1.0})


def test_the_first_read_of_a_bundle_keeps_its_copy_where_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.running import local
    from serve.running.ingress import Ingress

    asked = []

    def read(bundle: str, *, cache_dir: str = "") -> None:
        asked.append(cache_dir)
        raise UserError("stop here, before Ray")

    monkeypatch.setattr(local, "read_bundle", read)
    with pytest.raises(UserError, match="stop here"):
        local.serve_until_stopped(
            ServeConfig(EndpointConfig("s3://b/m", cache_dir=str(tmp_path))), Ingress(False, "", "", {})
        )
    assert asked == [str(tmp_path)]


def test_the_help_lists_what_a_user_may_give_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["app.py", "--help"])
    with pytest.raises(SystemExit):
        app.main()
    told = capsys.readouterr().out
    flags = {
        line.strip("│| ").split(" ")[0].rstrip(",") for line in told.splitlines()
    }  # of "--this, --no-this" the first
    assert "--down" in flags
    assert "--no-down" not in told
    assert "--previous" not in told
    for setting in fields(EndpointConfig):
        hidden = setting.name in ("previous", "model", "previous_model", "candidate")
        assert hidden or f"--{setting.name.replace('_', '-')}" in flags


def test_the_endpoint_gets_the_settings_that_others_read_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[ServeConfig] = []

    def prepare(config: ServeConfig) -> None:
        given.append(config)
        raise UserError("stop here, before Ray")

    monkeypatch.setattr("serve.running.ingress.prepare", prepare)
    monkeypatch.setattr("sys.argv", ["app.py", "--bundle", str(tmp_path), "--port", "8123", "--rate-limit", "3"])
    assert app.main() == 2
    expected = ServeConfig(EndpointConfig(str(tmp_path), rate_limit=3.0), port=8123).resolved()
    assert given == [expected]
    assert type(given[0].endpoint) is EndpointConfig
