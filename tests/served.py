"""`serve/app.py` as a user runs it: a process of its own, with a Ray of its own."""

import contextlib
import json
import os
import re
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from serve.running.note import Running, processes_of
from tests.commands import PATIENCE_S, ROOT, Command
from tests.serving import free_port

KEY = "er_a-key-that-the-tests-know"


@dataclass(frozen=True)
class Served:
    """An endpoint that answers."""

    command: Command
    note: Running
    said: str
    """What the command printed until it answered."""
    environ: dict[str, str]
    """The environment that it runs in."""
    trusting: ssl.SSLContext | bool

    def client(self, key: str = KEY) -> httpx.Client:
        """It brings the key, if any, and trusts the endpoint's own certificate."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.note.url, timeout=60, headers=headers, verify=self.trusting)

    def processes(self) -> list[psutil.Process]:
        """All of this endpoint that live, the command included."""
        found = []
        for pid in {self.note.pid, *processes_of(self.note.folder)}:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def replicas(self) -> set[int]:
        return {process.pid for process in self.processes() if kind_of(process) == "ray::ServeReplica"}

    def until_replicas(self, count: int) -> set[int]:
        """Wait for so many; their process ids."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := self.replicas()) != count:
            assert time.monotonic() < deadline, f"{len(found)} replicas, not {count}"
            time.sleep(0.1)
        return found

    def replica_metrics(self) -> set[str]:
        """The names of all metrics that its replicas have, on the ports that Ray names to Prometheus."""
        places = json.loads(Path(self.note.session_dir, "prom_metrics_service_discovery.json").read_text())
        ports = [port for place in places for port in place["targets"]]
        pages = [httpx.get(f"http://{port}/metrics", timeout=30).text for port in ports]
        families = [family for page in pages for family in text_string_to_metric_families(page)]
        by_process = [(one.labels.get("WorkerId"), family.name) for family in families for one in family.samples]
        replicas = {process for process, name in by_process if name.startswith("ray_eagleray_serve_")}
        return {name for process, name in by_process if process in replicas}

    def until_gone(self) -> None:
        """Wait until none of its processes is left; they may take a moment to be cleared away."""
        deadline = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def kind_of(process: psutil.Process) -> str:
    """What a process is: `ray::ServeReplica`, `haproxy`, `raylet`, or the name of its program."""
    with contextlib.suppress(psutil.Error):
        line = " ".join(process.cmdline())
        named = re.match(r"ray::\w+", line)
        return named[0] if named else str(process.name())
    return "gone"


@contextlib.contextmanager
def served(*arguments: str, keys: str = f"tester={KEY}", tls: tuple[str, str] | None = None) -> Iterator[Served]:
    """A running endpoint, ended where the test has not ended it. `keys`: its EAGLERAY_KEYS. `tls`: certificate, key."""
    # Short, because the path of a Unix socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="er", dir="/tmp"))
    environ = {
        "RAY_TMPDIR": str(folder),
        "RAY_ADDRESS": "127.0.0.1:1",  # another Ray must not matter
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "EAGLERAY_KEYS": keys,
    }
    port = free_port()
    app = str(ROOT / "serve/app.py")
    secure = ("--tls-cert", tls[0], "--tls-key", tls[1]) if tls else ()
    trusting = ssl.create_default_context(cafile=tls[0]) if tls else True
    command = Command(app, "--port", str(port), *secure, *arguments, cwd=folder, env=environ)
    try:
        with command:
            command.wait_for("Ctrl-C stops it")
            written = json.loads((folder / f"state/eagleray/endpoints/{port}.json").read_text())
            yield Served(command, Running(**written), command.text, {**os.environ, **environ}, trusting)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
