"""What listens beyond this machine, and what it says to a stranger: as it is, and as the README's table has it."""

import contextlib
import re
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.commands import ROOT

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
EVERY = ("0.0.0.0", "::")
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


def beyond_this_machine(command: psutil.Process, name: str) -> set[tuple[str, int, str]]:
    """(address, port, process) of a command, called `name`, and of all that it has started.

    Found as its descendants: a process of Ray's that changes its title may lose its environment by that.
    """
    found = set()
    for process in [command, *command.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            called = name if process == command else named(process)
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN and one.laddr.ip not in LOOPBACK:
                    found.add((one.laddr.ip, one.laddr.port, called))
    return found


def named(process: psutil.Process) -> str:
    """`ray::ServeReplica`, a script's name or a program's; workers, whose titles change, are all `ray::`."""
    words = process.cmdline()
    line = " ".join(words)
    if titled := re.match(r"ray::(\w+)", line):
        return titled[0] if titled[1] in ("ServeReplica", "DashboardAgent", "RuntimeEnvAgent") else "ray::"
    scripts = [Path(word).name for word in words[1:] if word.endswith(".py")]
    if scripts:
        return "ray::" if scripts[0] == "default_worker.py" else scripts[0]  # it has no title yet
    return str(process.name())


def as_they_answer(listening: set[tuple[str, int, str]]) -> set[tuple[str, str]]:
    """(process, what it says without Ray's token); what ended meanwhile is left out."""
    found = set()
    for address, port, process in listening:
        with contextlib.suppress(httpx.ConnectError):
            found.add((process, without_token("127.0.0.1" if address in EVERY else address, port)))
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
