"""The servers of benchmarks/serving.py, ours among them: each as a process of its own, with what is posted to it."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from loadgen import Post, jpegs
from underload import ROOT, Endpoint, Tree, free_port

SERVERS = Path(__file__).with_name("servers")
_BOUNDARY = "frontier"
# 24 characters at least, as our key store wants them.
_KEY = "er_only-for-this-benchmark-on-loopback"


@dataclass(frozen=True)
class Rival:
    """A server that is not ours."""

    script: str
    others: bool = False
    """Runs in the other environment."""
    form: bool = False
    """Takes images as a form's file."""
    env: Mapping[str, str] = field(default_factory=dict)


RIVALS = {
    "bare": Rival("bareserver.py"),
    "fastapi": Rival("fastapiserver.py"),
    "ray": Rival("rayserver.py"),
    "litserve": Rival("litserver.py", others=True, form=True),
    "litserve8": Rival("litserver.py", others=True, form=True, env={"LIT_BATCH": "8"}),
    "bentoml": Rival("bentoserver.py", others=True),
}


@contextmanager
def rival(one: Rival, bundle: Path, python: str) -> Iterator[tuple[str, Tree]]:
    """The server as a process of its own: its address and its processes."""
    port = free_port()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "EAGLERAY_BUNDLE": str(bundle), "EAGLERAY_PORT": str(port)}
    env |= {"EAGLERAY_KEY": _KEY, **one.env}
    if one.others:
        packages = [path for path in sys.path if path.endswith("site-packages")]
        env["EAGLERAY_PATH"] = os.pathsep.join([str(ROOT), *packages])
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        command = [python if one.others else sys.executable, str(SERVERS / one.script)]
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        tree = Tree(process.pid)
        try:
            _wait_for(port, process, Path(log.name))
            yield f"http://127.0.0.1:{port}/predict", tree
        finally:
            left = tree.processes()
            for ended in left:
                _end(ended, kill=False)
            for stubborn in psutil.wait_procs(left, timeout=15)[1]:
                _end(stubborn, kill=True)


def _end(process: psutil.Process, *, kill: bool) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill() if kill else process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until somebody listens."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")


def form(blob: bytes) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg'
    )
    return head.encode() + b"\r\n\r\n" + blob + f"\r\n--{_BOUNDARY}--\r\n".encode()


@contextmanager
def server(name: str, bundle: Path, python: str) -> Iterator[tuple[Post, Tree]]:
    """A server that is up, and what is to be posted to it."""
    pictures = jpegs()
    if name == "ours":
        with Endpoint(bundle, "--max-replicas", "1") as endpoint:
            headers = {**endpoint.headers, "content-type": "image/jpeg"}
            yield Post(f"{endpoint.url}/predict", pictures, headers), endpoint.tree
        return
    one = RIVALS[name]
    kind = f"multipart/form-data; boundary={_BOUNDARY}" if one.form else "image/jpeg"
    bodies = [form(picture) for picture in pictures] if one.form else pictures
    with rival(one, bundle, python) as (url, tree):
        yield Post(url, bodies, {"authorization": f"Bearer {_KEY}", "content-type": kind}), tree


def check(post: Post, bundle: Path) -> None:
    """The server gives the predictor's own answer: the same model for all."""
    from models.predictor import Prediction, Predictor

    predictor = Predictor.load(str(bundle), threads=1)
    for body, picture in list(zip(post.bodies, jpegs(), strict=True))[:3]:
        (found,) = json.loads(_first_answer(post, body))["predictions"]
        (expected,) = predictor.predict([picture])
        assert isinstance(expected, Prediction)
        assert found["label"] == expected.label
        assert abs(found["probability"] - expected.probability) < 1e-4, (found, expected)


def _first_answer(post: Post, body: bytes) -> bytes:
    """Ray's proxy answers 404 until the application behind it is up."""
    end = time.monotonic() + 90
    while True:
        try:
            request = urllib.request.Request(post.url, data=body, headers=dict(post.headers))
            with urllib.request.urlopen(request, timeout=60) as reply:
                answer: bytes = reply.read()
                return answer
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
