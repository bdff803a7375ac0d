"""What a node of a cluster has to know of the endpoint before its Ray starts, as lines for the shell:

    eval "$(python -m serve.running.clusternode)" && ray start ...

Ray Serve reads its settings from the environment that `ray start` had, on every node; an endpoint is deployed later
(serve/oncluster.yaml) and can change none of them. They are a local endpoint's, but for what only a single machine
needs: there is one Ray on a node, so Ray's own ports and files do.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from data.errors import UserError
from serve.running.ingress import INSTEAD, binary_of, tuning
from serve.running.standin import stand_in
from serve.settings import EndpointConfig, ServeConfig

FOLDER: Final = "~/.eagleray/haproxy"
"""HAProxy's files on a node: not below /tmp, which is everybody's to write to."""
# Ray's own: nothing else listens on them on a node.
PORTS: Final = {"metrics": 9101, "stats": 8404}
MARK: Final = "EAGLERAY_NODE"
"""Set in every process of a Ray that was started with these lines."""
# What a node is started for, whatever is deployed on it later.
_STARTED_FOR: Final = ServeConfig(EndpointConfig("none-yet"))


def settings(config: ServeConfig, folder: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables by name; the stand-in for HAProxy that they name is written into `folder`.

    Replicas listen on all of a node's addresses, since every node's HAProxy has to reach those of all nodes. HAProxy,
    which is where people come in, listens on `config.host` all the same.
    """
    if not (binary := binary_of(environ)):
        return {"RAY_SERVE_ENABLE_HA_PROXY": "0", **tuning(config)}
    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        **tuning(config),
        "RAY_SERVE_HAPROXY_BINARY_PATH": stand_in(config, folder, PORTS, binary, told="*"),
        # Ray has HAProxy send a line for each request to the machine's syslog. Nobody listens on this socket.
        "RAY_SERVE_HAPROXY_LOG_TARGET": f"{folder}/no-log.sock",
    }


def refuse_too_late(config: ServeConfig, environ: Mapping[str, str]) -> None:
    """UserError for what is asked of an endpoint on a cluster's node and can only be set when the node is started:
    it would do nothing, and nobody would be told. Elsewhere nothing is refused."""
    if MARK not in environ:
        return
    names = ("host", "port", "ingress", "tls_cert", "tls_key")
    if unheard := [name for name in names if getattr(config, name) != getattr(_STARTED_FOR, name)]:
        what = "without effect on a cluster, whose endpoint is on port 8000 of each node's loopback, behind HAProxy"
        raise UserError(f"{', '.join(unheard)}: {what}; leave it out and come in through `ray exec -p 8000`")
    most = {
        "request_timeout_s": (config.request_timeout_s, _STARTED_FOR.request_timeout_s),
        "body_timeout_s": (config.endpoint.body_timeout_s, _STARTED_FOR.endpoint.body_timeout_s),
    }
    for name, (asked, limit) in most.items():
        if asked > limit:
            raise UserError(
                f"{name} must be <= {limit:g} on a cluster: its HAProxy was started for that; got {asked:g}"
            )


def main() -> int:
    found = settings(_STARTED_FOR, str(Path(FOLDER).expanduser()), {})
    if found["RAY_SERVE_ENABLE_HA_PROXY"] == "0":
        print(f"no HAProxy is installed: {INSTEAD}", file=sys.stderr)
    for name, value in {**found, MARK: "1"}.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
