"""The notes of running endpoints, how one is ended from another terminal, and what its command tells people."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from serve import app
from serve.running import note as notes
from serve.running.howtocall import how_to_call, url_of
from serve.running.ingress import Ingress
from serve.running.note import MARK, Running, end, processes_of, refuse_twin
from serve.running.starting import in_one_line
from serve.settings import EndpointConfig, ServeConfig

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EAGLERAY_KEYS", raising=False)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that waits, with an endpoint's mark; stubborn ones do not hear SIGTERM."""
    started = []

    def start(folder: str, *, stubborn: bool = False) -> "subprocess.Popen[bytes]":
        ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if stubborn else ""
        process = subprocess.Popen(
            [sys.executable, "-c", f"{ignore}print('up', flush=True); import time; time.sleep(300)"],
            env={**os.environ, MARK: folder},
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def note(port: int, pid: int, folder: str = "/tmp/eagleray-none", **values: Any) -> Running:
    whole = {"url": f"http://127.0.0.1:{port}", "dashboard": "http://127.0.0.1:8265", "ray_address": "127.0.0.1:1"}
    whole |= {"session_dir": "/tmp/ray/s", "bundle": "/b", "keys": "", "folder": folder}
    return Running(**{**whole, "pid": pid, "ports": {"http": port}, **values})


def test_a_running_endpoint_is_found_by_its_note(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no endpoint of yours runs .*serve/app\.py starts one"):
        Running.find()
    mine = note(8000, os.getpid())
    mine.write()
    (file,) = tmp_path.glob("state/eagleray/endpoints/*")
    assert file.name == "8000.json"
    assert file.stat().st_mode & 0o77 == 0
    found = Running.find()
    assert (found.pid, found.url, found.port) == (os.getpid(), "http://127.0.0.1:8000", 8000)
    assert found.alive
    assert Running.find(8000) == found
    with pytest.raises(UserError, match="on port 8001"):
        Running.find(8001)
    note(8001, os.getpid()).write()
    with pytest.raises(UserError, match=r"several .*\(ports 8000, 8001\): say which with --port"):
        Running.find()
    assert Running.find(8001).port == 8001
    mine.remove()
    mine.remove()  # twice is no error
    assert Running.find().port == 8001


def test_the_note_of_a_process_that_is_gone_is_not_believed(tmp_path: Path, start: Start) -> None:
    process = start("/tmp/eagleray-gone")
    note(8000, process.pid).write()
    assert Running.find().alive
    process.kill()
    process.wait()
    folder = tmp_path / "state/eagleray/endpoints"
    (folder / "8002.json").write_text("{}")
    (folder / "8003.json").write_text("not JSON")
    assert Running.all() == []
    # The same process id, given to another process since then.
    text = (folder / "8000.json").read_text().replace(f'"pid": {process.pid}', f'"pid": {os.getpid()}')
    (folder / "8000.json").write_text(text)
    assert Running.all() == []


def test_down_ends_the_endpoint_and_what_it_leaves_behind(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notes, "_KILL_S", 0.5)
    folder, other = str(tmp_path / "mine"), str(tmp_path / "other")
    command, left, elsewhere = start(folder), start(folder, stubborn=True), start(other)
    note(8000, command.pid, folder).write()
    note(8001, elsewhere.pid, other).write()
    assert sorted(processes_of(folder)) == sorted([command.pid, left.pid])
    monkeypatch.setattr(sys, "argv", ["app.py", "--down", "--port", "8000"])
    assert app.main() == 0
    assert command.wait(10) == -signal.SIGTERM
    assert left.wait(10) == -signal.SIGKILL
    assert elsewhere.poll() is None
    assert capsys.readouterr().out.splitlines() == [
        f"ended the endpoint at http://127.0.0.1:8000 (process {command.pid})",
        "ended 1 processes that it had left behind",
        "still running: the endpoint at http://127.0.0.1:8001",
    ]
    assert [one.port for one in Running.all()] == [8001]


def test_down_ends_what_a_killed_command_left_behind(tmp_path: Path, start: Start) -> None:
    folder = str(tmp_path / "mine")
    command, left = start(folder), start(folder)
    note(8000, command.pid, folder).write()
    command.kill()
    command.wait()
    assert end(Running.find()) == ["ended 1 processes that it had left behind"]
    assert left.wait(10) == -signal.SIGTERM
    assert Running.all() == []


def test_one_that_is_still_starting_has_a_note_by_which_it_can_be_ended(
    tiny_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve import promote
    from serve.running import local
    from serve.running.starting import StartError

    seen: list[Running] = []

    def start(config: ServeConfig, ingress: Ingress, note: Running, after_ray: object) -> Running:
        seen.append(Running.find(config.port))
        monkeypatch.setattr(sys, "argv", ["promote.py", tiny_bundle])
        assert promote.main() == 2
        with pytest.raises(UserError, match="an endpoint of yours runs on port 8000: end it with"):
            refuse_twin(8000)
        raise StartError("no more than this")

    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "refuse_taken_port", lambda host, port: None)
    monkeypatch.setattr(local, "_finish", lambda patience_s: None)
    monkeypatch.setattr(local._Stop, "listen", lambda self: None)  # the tests' own signals stay
    monkeypatch.setattr(local._Stop, "ignore", lambda self: None)
    ingress = Ingress(True, "", str(tmp_path / "own"), {})
    assert local.serve_until_stopped(ServeConfig(EndpointConfig(tiny_bundle, auth="off")), ingress) == 1
    assert "is still starting: wait until it answers" in capsys.readouterr().err
    (note,) = seen
    assert (note.state, note.pid, note.folder, note.alive) == ("starting", os.getpid(), ingress.folder, True)
    assert Running.all() == []
    refuse_twin(8000)


def test_one_that_ends_before_ray_is_there_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.running import local

    asked: list[str] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.serve.delete", asked.append)
    local._finish(1)
    assert asked == []
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    local._finish(1)
    assert asked == ["eagleray"]


def test_what_an_endpoint_left_behind_must_go_before_the_next(tmp_path: Path, start: Start) -> None:
    command, _ = start(str(tmp_path / "mine")), start(str(tmp_path / "mine"))
    note(8000, command.pid, str(tmp_path / "mine")).write()
    command.kill()
    command.wait()
    with pytest.raises(UserError, match=r"has left behind runs on port 8000.*--down --port 8000"):
        refuse_twin(8000)
    refuse_twin(8001)


def test_down_without_an_endpoint_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", "--down"])
    assert app.main() == 2
    assert capsys.readouterr().err.startswith("error: no endpoint of yours")


def lines_for(environ: dict[str, str] | None = None, **values: Any) -> str:
    outer = {name: values.pop(name) for name in ("host", "port", "tls_cert", "tls_key") if name in values}
    return "\n".join(how_to_call(ServeConfig(EndpointConfig("b", **values), **outer), "abc", environ or {}))


def test_a_first_run_makes_a_key_and_shows_it_once(tmp_path: Path) -> None:
    first = lines_for()
    (call,) = [line for line in first.splitlines() if "curl" in line]
    assert "'Authorization: Bearer er_" in call
    assert "http://127.0.0.1:8000/predict" in call
    file = tmp_path / "config/eagleray/keys.json"
    key = call.partition("Bearer ")[2].partition("'")[0]
    assert key not in file.read_text()
    assert str(file) in first
    second = lines_for()
    assert "er_" not in second
    assert '-H "Authorization: Bearer $EAGLERAY_KEY"' in second
    assert f"keys: first (of {file} and the environment)" in second


def test_a_key_in_the_environment_is_named_and_none_is_made(tmp_path: Path) -> None:
    said = lines_for({"EAGLERAY_KEYS": "ana=a-long-enough-key-of-anas"})
    assert "keys: ana" in said
    assert "a-long-enough" not in said
    assert not (tmp_path / "config").exists()


def test_without_keys_it_says_so_and_with_tls_curl_trusts_the_certificate(tmp_path: Path) -> None:
    said = lines_for(auth="off", host="0.0.0.0", port=8123, tls_cert="/c.pem", tls_key="/k.pem")
    assert "curl --cacert /c.pem --data-binary @photo.jpg https://127.0.0.1:8123/predict" in said
    assert "asks for no key" in said
    assert url_of(ServeConfig(EndpointConfig("b"), host="::")) == "http://[::1]:8000"
    assert not (tmp_path / "config").exists()


RAYS_MESSAGE = """Failed to update the deployments ['endpoint'].
The deployment failed to start 2 times in a row. This may be due to a problem with its constructor. Error:
ray::ServeReplica:eagleray:endpoint.initialize_and_get_metadata() (pid=1, ip=127.0.0.1, actor_id=0)
  File "ray/serve/_private/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "serve/endpoint.py", line 158, in reconfigure
    raise UserError(
data.errors.UserError: the bundle fails on the warm-up image: train it again
"""

HAPROXYS_END = """ray::HAProxyManager.ready() (pid=1, ip=127.0.0.1, actor_id=0)
RuntimeError: HAProxy crashed during startup: [NOTICE]   (4756) : haproxy version is 2.8.25
[WARNING]  (4756) : config : log format ignored for frontend 'prometheus' since it has no log address.
[ALERT]    (4756) : Binding [/h/haproxy.cfg:92]: cannot bind socket (Address already in use) for [127.0.0.1:1]
[ALERT]    (4756) : [/h/haproxy.main()] Some protocols failed to start their listeners! Exiting.
"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            HAPROXYS_END,
            "HAProxy: Binding [/h/haproxy.cfg:92]: cannot bind socket (Address already in use) for [127.0.0.1:1]",
        ),
        (RAYS_MESSAGE, "the bundle fails on the warm-up image: train it again"),
        ("Traceback:\n  File x\nImportError: no module named y\n", "ImportError: no module named y"),
        ("It did\nnot work.", "It did not work."),
        ("", "Ray gives no reason"),
    ],
)
def test_what_ray_says_of_a_failed_start_becomes_one_line(message: str, line: str) -> None:
    assert in_one_line(message) == line
