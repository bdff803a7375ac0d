"""Serve on this machine: a Ray of its own, the endpoint on it, and nothing left when it ends."""

import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType

import ray
import ray.serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from data.errors import UserError
from models.bundle import read_bundle
from serve.deployment import build_application
from serve.settings import ServeConfig

_NAME = "eagleray"


def serve_until_stopped(config: ServeConfig) -> int:
    """Start Ray and the endpoint, print how to call it, wait for Ctrl-C or SIGTERM, stop both. Returns the exit code.

    UserError for a bundle that does not load and for a port that is taken, both before Ray is started.
    """
    config = config.resolved()
    info, _ = read_bundle(config.endpoint.bundle, cache_dir=config.endpoint.cache_dir)
    _refuse_taken_port(config.host, config.port)
    stop = _Stop()
    try:
        stop.listen()
        dashboard = _start(config, stop)
        print(_how_to_call(config, info.id, dashboard), flush=True)
        stop.wait()
    except _StoppedError:
        pass
    except RuntimeError as error:
        # Ray Serve's word for an application that does not start; it holds the replica's own error.
        print(f"error: the endpoint did not start: {error}", file=sys.stderr)
        return 1
    finally:
        stop.ignore()
        print("stopping: requests under way get to finish", flush=True)
        _finish(config.shutdown_s)
        ray.shutdown()
    return 0


class _StoppedError(Exception):
    """Asked to stop while still starting: unwinds from whatever call is under way."""


class _Stop:
    """SIGINT and SIGTERM as one wish to stop, whenever it comes."""

    def __init__(self) -> None:
        self._asked = False
        self._waiting = False

    def listen(self) -> None:
        """Again after `ray.init`, which puts its own handler in the place of SIGTERM's."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """While stopping: an impatient second Ctrl-C must not leave half of it running."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def wait(self) -> None:
        # A flag and short sleeps: a handler that takes a lock (Event.set) can deadlock with the thread it interrupts.
        self._waiting = True
        while not self._asked:
            time.sleep(0.2)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if not self._waiting:
            raise _StoppedError


def _start(config: ServeConfig, stop: _Stop) -> str:
    # "local": never join another Ray that happens to run here, whatever RAY_ADDRESS says.
    context = ray.init(
        address="local", include_dashboard=True, dashboard_host="127.0.0.1", logging_level=logging.WARNING
    )
    stop.listen()
    refuse_impossible(config, ray.cluster_resources())
    # Serve tells each of its steps; what is left for the terminal is what needs a person.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.serve.start(
        http_options=HTTPOptions(host=config.host, port=config.port, request_timeout_s=config.request_timeout_s),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    ray.serve.run(build_application(config), name=_NAME)
    return str(context.dashboard_url or "")


def refuse_impossible(config: ServeConfig, resources: Mapping[str, float]) -> None:
    """UserError if this machine can never hold the smallest endpoint: Ray would wait for more machines in silence."""
    wanted = {"CPU": config.cpus_per_replica}
    if config.endpoint.device == "cuda":
        wanted["GPU"] = config.gpus_per_replica
    for kind, share in wanted.items():
        there = resources.get(kind, 0.0)
        if share * config.min_replicas > there:
            flag = f"{kind.lower()}s-per-replica"
            raise UserError(
                f"{config.min_replicas} x {share:g} {kind} do not fit on this machine, which has {there:g}; "
                f"lower --{flag} or --min-replicas" + (", or use --device cpu" if kind == "GPU" else "")
            )


def _finish(patience_s: float) -> None:
    """Let the replicas finish what they have. Not for ever: when Ray itself is gone, its calls do not come back."""

    def delete() -> None:
        # Not `ray.serve.shutdown`: it has the controller kill itself, which Ray then reports as a failure, and the
        # end of our own Ray ends Serve anyway. An endpoint that never started has nothing to delete.
        with contextlib.suppress(RayServeException, RayError):
            ray.serve.delete(_NAME)

    worker = threading.Thread(target=delete, daemon=True)
    worker.start()
    worker.join(patience_s + 5)


def _refuse_taken_port(host: str, port: int) -> None:
    # Ray's proxy shares a port without a word (SO_REUSEPORT): two endpoints would then answer in turn.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot listen on {host} port {port} ({reason}); give another --port or --host") from None


def _how_to_call(config: ServeConfig, model: str, dashboard: str) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    address = f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{config.port}"
    lines = [
        f"model {model} answers at {address} (what it takes: {address}/docs)",
        f"  curl --data-binary @photo.jpg {address}/predict",
        "Ctrl-C stops it.",
    ]
    if dashboard:
        lines.insert(2, f"Ray's dashboard: http://{dashboard} (it asks for the token that `ray get-auth-token` prints)")
    return "\n".join(lines)
