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

from serve.running.ingress import INSTEAD, binary_of, tuning
from serve.running.standin import stand_in
from serve.settings import EndpointConfig, ServeConfig

FOLDER: Final = "~/.eagleray/haproxy"
"""HAProxy's files on a node: not below /tmp, which is everybody's to write to."""
# Ray's own: nothing else listens on them on a node.
PORTS: Final = {"metrics": 9101, "stats": 8404}


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


def main() -> int:
    config = ServeConfig(EndpointConfig("none-yet"))
    found = settings(config, str(Path(FOLDER).expanduser()), {})
    if found["RAY_SERVE_ENABLE_HA_PROXY"] == "0":
        print(f"no HAProxy is installed: {INSTEAD}", file=sys.stderr)
    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
