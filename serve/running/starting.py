"""From settings to an endpoint that answers: Ray, Serve, the application, and the wait for its first answer."""

import dataclasses
import http.client
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import ray
import ray.exceptions
import ray.serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import ApplicationStatus, LoggingConfig, ServeDeploySchema

from data.errors import UserError
from serve.running.howtocall import reachable
from serve.running.ingress import Ingress
from serve.running.note import Running
from serve.running.raysown import end_log_monitor
from serve.settings import ServeConfig

APPLICATION: Final = "eagleray"
# Long enough for a large bundle from S3 and a GPU's first kernels on a busy machine; an error is told at once.
_PATIENCE_S: Final = 600.0
_POLL_S: Final = 0.1


class StartError(Exception):
    """The endpoint did not start: what Ray or a replica says about it."""


def start(config: ServeConfig, ingress: Ingress, note: Running, after_ray: Callable[[], None]) -> Running:
    """Start a Ray of our own with the endpoint on it; returns `note`, completed, once the endpoint answers over HTTP.

    `after_ray` is called as soon as Ray runs. StartError says why the endpoint does not answer, UserError what this
    machine lacks.
    """
    # "local": never join another Ray that happens to run here, whatever RAY_ADDRESS says. Its processes' own output
    # stays in Ray's log files: what a person must know is told here, in one line.
    context: Any = ray.init(
        address="local",
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    end_log_monitor()
    after_ray()
    refuse_impossible(config, ray.cluster_resources())
    # Serve tells each of its steps; what is left for the terminal is what needs a person.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http_options = HTTPOptions(**ingress.http_options(config))
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        ray.serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=http_options, logging_config=quiet)
    except ray.exceptions.RayError as error:  # HAProxy, whose end Ray passes on with all that it printed
        raise StartError(in_one_line(str(error))) from None
    _deploy(config)
    _wait(config)
    return dataclasses.replace(
        note,
        state="running",
        dashboard=f"http://{context.dashboard_url}",
        ray_address=context.address_info["address"],
        session_dir=context.address_info["session_dir"],
    )


def _deploy(config: ServeConfig) -> None:
    """The same that `serve deploy` does. Not `ray.serve.run`: what it deploys restarts when its model is changed."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    schema = ServeDeploySchema.model_validate(
        {
            "applications": [
                {
                    "name": APPLICATION,
                    "route_prefix": "/",
                    "import_path": "serve.app:app",
                    "args": config.as_arguments(),
                    "deployments": [{"name": "endpoint", "user_config": config.endpoint.as_user_config()}],
                }
            ]
        }
    )
    client.deploy_apps(schema)


def _wait(config: ServeConfig) -> None:
    """Until the endpoint answers, asked as a client asks it; StartError where Ray says that it will not."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        overview = ray.serve.status().applications.get(APPLICATION)
        if overview is not None and overview.status is ApplicationStatus.DEPLOY_FAILED:
            deployments = [deployment.message for deployment in overview.deployments.values()]
            raise StartError(in_one_line("\n".join([overview.message, *deployments])))
        if overview is not None and overview.status is ApplicationStatus.RUNNING and _answers(config):
            return
        time.sleep(_POLL_S)
    raise StartError(f"no answer within {_PATIENCE_S:.0f} s; Ray's logs lie in its session folder under /tmp/ray")


def _answers(config: ServeConfig) -> bool:
    host, port = reachable(config.host), config.port
    connection: http.client.HTTPConnection
    if config.tls_cert:
        # It is our own certificate, for whatever name it is made out.
        trusting = ssl.create_default_context(cafile=config.tls_cert)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=trusting)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def in_one_line(message: str) -> str:
    """What matters of Ray's message, which holds the tracebacks of all processes on the way: our own error, if any."""
    ours = re.findall(r"^(?:data\.errors\.)?UserError: (.+)$", message, re.MULTILINE)
    if ours:
        return str(ours[-1])
    if alarms := re.findall(r"\[ALERT\]\s+\(\d+\) : (.+)$", message, re.MULTILINE):
        return f"HAProxy: {alarms[0]}"
    errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*$", message, re.MULTILINE)
    return (errors[-1] if errors else " ".join(message.split())) or "Ray gives no reason"


def refuse_impossible(config: ServeConfig, resources: Mapping[str, float]) -> None:
    """UserError if this machine can never hold the smallest endpoint: Ray would wait for more machines in silence."""
    wanted = {"CPU": config.cpus_per_replica}
    if config.endpoint.device == "cuda":
        wanted["GPU"] = config.gpus_per_replica
    fewest = max(1, config.min_replicas)
    for kind, share in wanted.items():
        there = resources.get(kind, 0.0)
        if share * fewest > there:
            flag = f"{kind.lower()}s-per-replica"
            raise UserError(
                f"{fewest} x {share:g} {kind} do not fit on this machine, which has {there:g}; "
                f"lower --{flag} or --min-replicas" + (", or use --device cpu" if kind == "GPU" else "")
            )


def refuse_taken_port(host: str, port: int) -> None:
    """UserError where somebody listens there already."""
    # Ray's proxy shares a port without a word (SO_REUSEPORT): two endpoints would then answer in turn.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot listen on {host} port {port} ({reason}); give another --port or --host") from None
