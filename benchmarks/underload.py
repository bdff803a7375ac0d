"""What the serving benchmarks share: bundles, our endpoint as a process of its own, and what its processes use."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil

from models.processes import prepare_environment
from serve.client import Client

ROOT = Path(__file__).resolve().parents[1]
CLASSES = tuple(f"class-{number}" for number in range(10))
Kind = Literal["tiny", "resnet18"]


def write_bundle(folder: Path, kind: Kind, *, seed: int = 0, side: int = 14) -> str:
    """A network with random weights in `folder`; its id. They cost what learned ones cost.

    tiny: the catalog's small cnn for images of `side` pixels (of 14: half a million multiplications), so that what is
    measured is everything else: HTTP, decoding a JPEG of 224 pixels, JSON. resnet18 takes 224 pixels.
    """
    import torch

    from data.resizing import Resize
    from models import bundle
    from models.catalog import ModelConfig, build
    from models.preprocess import Preprocess

    torch.manual_seed(seed)
    if kind == "tiny":
        config, size = ModelConfig("cnn", dense_units=8), side
    else:
        config, size = ModelConfig("resnet18", weights="none", base="finetune", dense_units=256), 224
    model = build(config, classes=len(CLASSES), image_size=size)
    preprocess = Preprocess.for_model(config.model, Resize(size))
    thresholds = {"confident": 0.5}
    metrics = {"test": {"accuracy": 0.1, "accuracy_interval": [0.0, 0.2]}}
    info = bundle.write_bundle(
        str(folder), model, classes=CLASSES, preprocess=preprocess, metrics=metrics, thresholds=thresholds
    )
    return info.id


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Tree:
    """A process and all that descends from it: for Ray that is its daemons, its workers and HAProxy."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu(self) -> dict[int, float]:
        """User and system seconds of each process so far, by pid."""
        found = {}
        for process in self.processes():
            try:
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return found

    def names(self) -> dict[int, str]:
        """What each process is, in a word or two."""
        found = {}
        for process in self.processes():
            try:
                words = process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            found[process.pid] = (words[0] if words and words[0].startswith("ray::") else process.name()).strip()
        return found

    def replicas(self) -> list[int]:
        return [pid for pid, name in self.names().items() if name.startswith("ray::ServeReplica")]

    def memory(self, pids: Sequence[int] | None = None) -> int:
        """Bytes that would be free if these processes (by default all) ended."""
        total = 0
        for process in self.processes():
            if pids is None or process.pid in pids:
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
        return total


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """CPU seconds of a tree between two looks; a process that ended in between is forgotten."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


class Endpoint:
    """`python serve/app.py` with these flags, from `with` to its end. A key is made for it."""

    def __init__(
        self, bundle: str | Path, *flags: str, env: Mapping[str, str] | None = None, wait_s: float = 180
    ) -> None:
        self.port, self.key = free_port(), "er_" + secrets.token_urlsafe(32)
        self.url = f"http://127.0.0.1:{self.port}"
        self._wait_s = wait_s
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        prepare_environment()
        # Its state file and its key file must not meet those of a person who works on this machine.
        own = {"XDG_STATE_HOME": self._folder.name, "XDG_CONFIG_HOME": self._folder.name}
        self.env = {**os.environ, **own, "EAGLERAY_KEYS": f"bench={self.key}", "EAGLERAY_KEY": self.key}
        self.env |= env or {}
        self._command = [sys.executable, str(ROOT / "serve" / "app.py"), "--bundle", str(bundle)]
        self._command += ["--port", str(self.port), *flags]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Its own: state file, log."""
        return Path(self._folder.name)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def tree(self) -> Tree:
        assert self._process is not None
        return Tree(self._process.pid)

    def client(self, **options: Any) -> Client:
        return Client(self.url, self.key, **options)

    def __enter__(self) -> "Endpoint":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self.env, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder.name
            )
        end = time.monotonic() + self._wait_s
        with self.client() as client:
            while not client.ready():
                if self._process.poll() is not None or time.monotonic() > end:
                    self._stop()
                    raise RuntimeError(f"the endpoint did not start:\n{self.log()}")
                time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _stop(self) -> None:
        assert self._process is not None
        left = self.tree.processes()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
        _, alive = psutil.wait_procs(left, timeout=10)
        for process in alive:  # each of them was ours
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def command(endpoint: Endpoint, script: str, *words: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """One of serve/'s commands, for this endpoint."""
    line = [sys.executable, str(ROOT / "serve" / script), *words]
    return subprocess.run(line, env=endpoint.env, capture_output=True, text=True, timeout=timeout_s, check=False)


def say(**found: object) -> None:
    """The last line of a benchmark: one JSON object."""
    print(json.dumps(found, default=lambda value: value.__dict__), flush=True)
