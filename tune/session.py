"""The Ray that a command runs on: one started here, or the cluster that it was submitted to."""

import logging
import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import ray

from data.errors import UserError
from tune.clusterhead import News, workers_may_have

_DASHBOARD = "127.0.0.1"


@dataclass(frozen=True)
class Session:
    """What the running Ray offers, workers that its autoscaler may launch included.

    `dashboard` is an address without scheme, or "" where there is none.
    """

    dashboard: str
    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def trials_that_fit(self, workers: int, threads: int) -> int:
        """How many times `workers` processes of `threads` CPUs (or of one GPU each) fit at once.

        `UserError` where they fit not once: Ray would wait for them in silence.
        """
        each = workers * (1 if self.gpus else threads)
        total, unit = (self.gpus, "GPU") if self.gpus else (self.cpus, "CPU")
        if each > total:
            raise UserError(
                f"{workers} worker(s) need {each} {unit}s together and Ray has {total}; "
                "ask for fewer workers or --threads, or raise --cpus"
            )
        return total // each


def start_ray(*, cpus: int = 0) -> Session:
    """Join the cluster that `RAY_ADDRESS` names (as under `ray job submit`), else start a local Ray with a dashboard.

    A local Ray listens with its dashboard on loopback only and takes token authentication as Ray switches it on.
    `cpus` limits the local Ray's logical CPUs, 0 takes the machine's. `models.processes.prepare_environment` must have
    run before Ray was imported. A Ray that this process has already started is used as it is.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "ignore_reinit_error": True}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"address": "local", "include_dashboard": True, "dashboard_host": _DASHBOARD}
        options |= {"num_cpus": cpus} if cpus else {}
    context = ray.init(**options)
    if threading.current_thread() is threading.main_thread():
        # Schedulers and services end a process with SIGTERM, and Ray's own handler would abort it: it is a Ctrl-C.
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    resources, may_come = ray.cluster_resources(), {"CPU": 0, "GPU": 0}
    if os.environ.get("RAY_ADDRESS"):
        may_come = workers_may_have()
        News().follow()
    return Session(
        dashboard=context.dashboard_url or "",
        # Ray leaves out a resource that no node has: a cluster whose workers are yet to come has no CPU.
        cpus=max(int(resources.get("CPU", 0)), may_come["CPU"]),
        gpus=max(int(resources.get("GPU", 0)), may_come["GPU"]),
    )
