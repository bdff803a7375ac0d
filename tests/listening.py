"""What listens, and what it says to a stranger beyond this machine: as it is, and as the README's table has it."""

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.commands import PATIENCE_S, ROOT
from tests.served import kind_of

LOOPBACK = "127.0.0.1"
EVERY = "*"
SPELT = {"0.0.0.0": EVERY, "::": EVERY, "::1": LOOPBACK, "::ffff:127.0.0.1": LOOPBACK}
# Whatever else has a title of Ray's is a worker, which has the name of its work.
TITLES = ("ray::ServeReplica", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
# One of each service that Ray has: it asks for the token only where the called method exists.
METHODS = (
    "/ray.serve.ASGIService/HandleRequest",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/HealthCheck",
)


def in_the_readme(opened_by: str) -> set[tuple[str, str]]:
    """(process, what it says without Ray's token) of the rows that begin so."""
    rows = re.findall(
        rf"^\| {opened_by} \| (.+?) \| .+? \| (refused|metrics) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    return {(process, answer) for processes, answer in rows for process in re.findall(r"`([^`]+)`", processes)}


def listening(command: psutil.Process, name: str) -> set[tuple[str, int, str]]:
    """(address, port, process) of a command, called `name`, and of all that it has started; `*` is all addresses.

    Found as its descendants: a process of Ray's that changes its title may lose its environment by that. Looked at
    again where processes came or went meanwhile, as a HAProxy that takes over from another does.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found, family = set(), [command, *command.children(recursive=True)]
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in family:
                called = name if process == command else named(process)
                for one in process.net_connections("tcp"):
                    if one.status == psutil.CONN_LISTEN:
                        found.add((SPELT.get(one.laddr.ip, one.laddr.ip), one.laddr.port, called))
            if set(family) == {command, *command.children(recursive=True)}:
                return found
        time.sleep(0.1)
    raise AssertionError(f"the processes of {name} do not come to rest")


def named(process: psutil.Process) -> str:
    """`ray::ServeReplica`, the name of a script, or that of a program."""
    kind = kind_of(process)
    scripts = [Path(word).name for word in process.cmdline()[1:] if word.endswith(".py")]
    if scripts and not kind.startswith("ray::"):
        return "ray::" if scripts[0] == "default_worker.py" else scripts[0]  # it has no title yet
    return kind


def beyond_this_machine(command: psutil.Process, name: str) -> set[tuple[str, str]]:
    """(process, what it says without Ray's token) of what is not on loopback; what ended meanwhile is left out."""
    found = set()
    for address, port, process in listening(command, name):
        called = "ray::" if process.startswith("ray::") and process not in TITLES else process
        if address != LOOPBACK:
            with contextlib.suppress(httpx.ConnectError):
                found.add((called, without_token(LOOPBACK if address == EVERY else address, port)))
    return found


def without_token(address: str, port: int) -> str:
    """`refused`, `metrics`, or whatever else it says."""
    try:
        answer = httpx.get(f"http://{address}:{port}/metrics", timeout=30)
    except (httpx.RemoteProtocolError, httpx.ReadError):  # no HTTP/1.1
        return without_token_grpc(f"{address}:{port}")
    if answer.status_code == 401:
        return "refused"
    return "metrics" if answer.text.startswith("# HELP ") else f"HTTP {answer.status_code}"


def without_token_grpc(target: str) -> str:
    grpc: Any = pytest.importorskip("grpc")  # Ray brings it along, without types
    codes = []
    with grpc.insecure_channel(target) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=30)
                codes.append("OK")
            except grpc.RpcError as error:
                codes.append(error.code().name)
    others = set(codes) - {"UNIMPLEMENTED"}
    return "refused" if others == {"UNAUTHENTICATED"} else f"gRPC {codes}"
