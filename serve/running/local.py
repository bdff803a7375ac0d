"""Serve on this machine: a Ray of its own, the endpoint on it, and nothing left when it ends."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from types import FrameType

import ray
import ray.serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from models.bundle import read_bundle
from serve.running.howtocall import how_to_call, url_of
from serve.running.ingress import Ingress
from serve.running.note import Running, refuse_twin
from serve.running.starting import APPLICATION, StartError, refuse_taken_port, start
from serve.settings import ServeConfig


def serve_until_stopped(config: ServeConfig, ingress: Ingress) -> int:
    """Start Ray and the endpoint, print how to call it, wait for Ctrl-C or SIGTERM, stop both. Returns the exit code.

    UserError, all before Ray is started, for a bundle that does not load, keys that cannot be read, a port that is
    taken, by an endpoint that is still starting as well.
    """
    config = config.resolved()
    info, _ = read_bundle(config.endpoint.bundle, cache_dir=config.endpoint.cache_dir)
    config = dataclasses.replace(config, endpoint=dataclasses.replace(config.endpoint, model=info.id))
    refuse_taken_port(config.host, config.port)
    refuse_twin(config.port)
    lines = how_to_call(config, info.id)
    stop = _Stop()
    running = _starting(config, ingress)
    try:
        stop.listen()
        running.write()  # before it answers, so that --down ends one that never comes to that
        running = start(config, ingress, running, after_ray=stop.listen)
        running.write()
        dashboard = f"Ray's dashboard: {running.dashboard} (it asks for the token that `ray get-auth-token` prints)"
        print("\n".join([*lines, dashboard, "Ctrl-C stops it."]), flush=True)
        stop.wait()
    except _StoppedError:
        pass
    except StartError as error:
        print(f"error: the endpoint did not start: {error}", file=sys.stderr)
        return 1
    finally:
        stop.ignore()
        print("stopping: requests under way get to finish", flush=True)
        running.remove()
        _finish(config.shutdown_s)
        ray.shutdown()
    return 0


def _starting(config: ServeConfig, ingress: Ingress) -> Running:
    """What is known of an endpoint before its Ray is there."""
    return Running(
        pid=os.getpid(),
        url=url_of(config),
        dashboard="",
        ray_address="",
        session_dir="",
        bundle=config.endpoint.bundle,
        keys=config.endpoint.keys,
        ports={"http": config.port, **ingress.ports},
        folder=ingress.folder,
        state="starting",
    )


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


def _finish(patience_s: float) -> None:
    """Let the replicas finish what they have. Not for ever: when Ray itself is gone, its calls do not come back."""

    def delete() -> None:
        # Not `ray.serve.shutdown`: it has the controller kill itself, which Ray then reports as a failure, and the
        # end of our own Ray ends Serve anyway. An endpoint that never started has nothing to delete.
        with contextlib.suppress(RayServeException, RayError):
            ray.serve.delete(APPLICATION)

    if not ray.is_initialized():
        return  # ended before Ray was there, and Serve would start one to delete from
    worker = threading.Thread(target=delete, daemon=True)
    worker.start()
    worker.join(patience_s + 5)
