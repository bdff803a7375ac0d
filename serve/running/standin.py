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

_LATE = {
    "error": {"code": "body_timeout", "message": "the request did not arrive in time: send it faster or send less"}
}

_FRONT: Final = (
    # Ray Serve reads the body of a request that waits for its turn, however long it is, so as to hear when the client
    # goes away. Told not to, it leaves the body to us, who read it when its turn has come and its key is known.
    "http-request set-header x-request-disconnect-disabled ?1",
    # The one request that changes something: sent again, a correction could be kept twice.
    "http-request disable-l7-retry if { path /corrections }",
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
        "frontend http_frontend": _and_then(_FRONT),
    }
    checks = "\n".join(f"grep -q '^ *{old}$' \"$3\"" for old in changes)
    edits = " ".join(f"-e 's|{old}$|{new}|'" for old, new in changes.items())
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
    """Three lines for the section that all others inherit.

    `http-buffer-request` has HAProxy wait for the whole request (or a full buffer) before it chooses a replica: only
    what it holds whole can be sent again to another one, and a client that sends slowly takes no replica's place.
    """
    late = Path(folder, "408.http")
    body = json.dumps(_LATE, separators=(",", ":"))
    head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    late.write_bytes(f"{head}connection: close\r\n\r\n{body}".encode())
    milliseconds = round(config.endpoint.body_timeout_s * 1000)
    return "option http-buffer-request", f"timeout http-request {milliseconds}ms", f"errorfile 408 {late}"


def _and_then(lines: Iterable[str]) -> str:
    """The line that was found, and these after it, as sed writes it."""
    return "&" + "".join(rf"\n    {line}" for line in lines)
