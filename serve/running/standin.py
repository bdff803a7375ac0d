"""A program that Ray starts as HAProxy: it changes what Ray has no settings for, and becomes HAProxy."""

import json
import re
import shlex
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from serve.settings import ServeConfig

LOOPBACK: Final = "127.0.0.1"

CONNECTIONS: Final = 4096
"""Most connections that HAProxy keeps open at once."""
CONNECTIONS_OF_ONE: Final = 1024
"""And of one address: one client that opens connections and falls silent leaves room for three more such. Not fewer,
since all clients behind a load balancer come from one address."""

# A head is a few hundred bytes, so it has no need of the time that a body may take.
_HEAD_S: Final = 10.0

# What HAProxy answers itself, in the form of all other errors, by the file that it reads: status line, more headers.
_ANSWERS: Final = {
    "408.http": (
        "408 Request Timeout",
        "connection: close\r\n",
        "body_timeout",
        "the request did not arrive in time: send it faster or send less",
    ),
    "503.http": (
        "503 Service Unavailable",
        "retry-after: 1\r\n",
        "not_ready",
        "the endpoint is starting or stopping: try again in a few seconds",
    ),
    "504.http": (
        "504 Gateway Timeout",
        "",
        "request_timeout",
        "the answer took longer than this endpoint gives a request: send fewer images at once, or try again later",
    ),
    "404.http": ("404 Not Found", "", "not_found", "there is nothing here for clients"),
}

# Read by Ray in place of the application. A multiplexed model's id waits for a model of that name, which there is none
# of, and ends in a 500; the session's chooses a replica; the time-out is ours to set.
_RAYS_HEADERS: Final = (
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
    "x-session-id",
    "x-request-timeout-seconds",
)


def stand_in(config: ServeConfig, folder: str, ports: Mapping[str, int], binary: str, *, told: str = LOOPBACK) -> str:
    """Write the program into `folder`, with the files that HAProxy is to read; returns its path.

    `ports`: HAProxy's "metrics" and "stats". `binary`: the real HAProxy. `told`: where Ray was told to listen, as
    it writes it into HAProxy's file ("*" for all addresses). OSError for TLS files that cannot be read.

    It changes a few lines of the file that Ray writes, each time that Ray starts HAProxy, and does not start it where
    Ray's file is not what is expected here.
    """
    changes = {
        **_addresses(config, folder, ports, told),
        "balance .*": _and_then(_waiting(config, folder)),
        "frontend http_frontend": _and_then(_front(config, folder)),
    }
    for name, answer in _ANSWERS.items():
        Path(folder, name).write_bytes(_answer(*answer))
        Path(folder, name).with_suffix(".json").write_bytes(_answer(*answer).partition(b"\r\n\r\n")[2])
    # Nice to have, so HAProxy is started without them as well.
    wishes = {
        # While no application is there, all paths are "not found".
        "http-request return status 404 content-type text/plain .*": f"http-request {_not_ready(folder)}",
        # A line for each request, sent to where nobody reads it.
        "log global": "# no log",
    }
    checks = "\n".join(f"grep -q '^ *{old}$' \"$3\"" for old in changes)
    edits = " ".join(f"-e 's|{old}$|{new}|'" for old, new in {**changes, **wishes}.items())
    program = Path(folder, "haproxy")
    program.write_text(
        f"""#!/bin/sh
# Started by Ray as: haproxy -db -f FILE ...
set -e
{checks}
sed -i {edits} "$3"
exec {shlex.quote(binary)} "$@"
"""
    )
    program.chmod(stat.S_IRWXU)
    return str(program)


def _addresses(config: ServeConfig, folder: str, ports: Mapping[str, int], told: str) -> dict[str, str]:
    """Where HAProxy listens: the endpoint where it was asked to, with TLS if it has a certificate, and the two pages of
    counters on this machine only (Ray opens them to all, without a key)."""
    secured = ""
    if config.tls_cert:
        both = Path(folder, "tls.pem")
        both.touch(mode=0o600)
        both.write_bytes(b"\n".join(Path(file).read_bytes() for file in (config.tls_cert, config.tls_key)))
        secured = f" ssl crt {both} ssl-min-ver TLSv1.2"
    return {
        rf"bind {re.escape(told)}:{config.port}": f"bind {config.host}:{config.port}{secured}",
        f"bind :{ports['metrics']}": f"bind {LOOPBACK}:{ports['metrics']}",
        rf"bind \*:{ports['stats']}": f"bind {LOOPBACK}:{ports['stats']}",
    }


def _waiting(config: ServeConfig, folder: str) -> tuple[str, ...]:
    """For the section that all others inherit."""
    body_ms, head_ms = _milliseconds(config)
    return (
        f"timeout http-request {head_ms}ms",
        f"timeout http-keep-alive {body_ms}ms",
        f"errorfile 408 {folder}/408.http",
        # Ray's are a 500 in plain text.
        f"errorfile 503 {folder}/503.http",
        f"errorfile 504 {folder}/504.http",
    )


def _front(config: ServeConfig, folder: str) -> tuple[str, ...]:
    """For the section where requests come in, before Ray's own lines.

    `wait-for-body` has HAProxy wait for the whole request (or a full buffer) before it chooses a replica: only what it
    holds whole can be sent again to another one, and a client that sends slowly takes no replica's place. Not `option
    http-buffer-request`: its time is that for the head as well.
    """
    body_ms, _ = _milliseconds(config)
    return (
        "stick-table type ipv6 size 64k expire 60s store conn_cur",
        "tcp-request connection track-sc0 src",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {CONNECTIONS_OF_ONE} }}",
        # Ray's own pages: of them only the one that says whether HAProxy is up. As the replica reads the path.
        f"http-request return status 404 content-type application/json file {folder}/404.json "
        "if { path,url_dec -m beg -i /-/ } !{ path -i /-/healthz }",
        # Ray Serve reads the body of a request that waits for its turn, however long it is, so as to hear when the
        # client goes away. Told not to, it leaves the body to us, who read it when its turn has come.
        "http-request set-header x-request-disconnect-disabled ?1",
        *(f"http-request del-header {name}" for name in _RAYS_HEADERS),
        # An id that we would not take (serve/watching/observe.py) is taken by nobody: Ray repeats whatever it is given.
        "http-request del-header x-request-id unless { req.fhdr_cnt(x-request-id) eq 1 } "
        "{ req.fhdr(x-request-id) -m reg ^[A-Za-z0-9._-]{1,128}$ }",
        "http-request set-header x-forwarded-proto %[ssl_fc,iif(https,http)]",
        # The one request that changes something: sent again, a correction could be kept twice.
        "http-request disable-l7-retry if { path /corrections }",
        f"http-request wait-for-body time {body_ms}ms",
        # Ray's proxy, which answers while no replica is up, knows no path then. All that is ours is JSON.
        f"http-response {_not_ready(folder)} if {{ status 404 }} {{ res.hdr(content-type) -m beg text/plain }}",
    )


def _not_ready(folder: str) -> str:
    return f"return status 503 content-type application/json file {folder}/503.json hdr retry-after 1"


def _milliseconds(config: ServeConfig) -> tuple[int, int]:
    """How long a body may take, and how long a head."""
    body_s = config.endpoint.body_timeout_s
    return round(body_s * 1000), round(min(body_s, _HEAD_S) * 1000)


def _answer(status: str, headers: str, code: str, message: str) -> bytes:
    body = json.dumps({"error": {"code": code, "message": message}}, separators=(",", ":"))
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}"
    return f"{head}\r\n{body}".encode()


def _and_then(lines: Iterable[str]) -> str:
    """The line that was found, and these after it, as sed writes it."""
    return "&" + "".join(rf"\n    {line}" for line in lines)
