"""The endpoints that run on this machine: each leaves a note of itself while it starts and runs, for the other commands
to find.

<user state folder>/eagleray/endpoints/PORT.json
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import platformdirs

from data.errors import UserError

MARK: Final = "EAGLERAY_INSTANCE"
"""In the environment of all processes of an endpoint: the folder that is its own, by which they are known."""
_ENDING_S: Final = 60.0
_KILL_S: Final = 10.0


@dataclass(frozen=True)
class Running:
    """An endpoint that starts or answers, or did when it wrote this down."""

    pid: int
    """Of the command, which ends all the others."""
    url: str
    dashboard: str
    """Ray's, where promotions go through. It asks for Ray's token. Empty while Ray starts, as the next two are."""
    ray_address: str
    session_dir: str
    """Ray's, with its logs."""
    bundle: str
    """The one that it started with."""
    keys: str
    """The key file; empty is the user's own."""
    ports: dict[str, int]
    """What its ingress listens on, by use: "http" is where clients come in."""
    folder: str
    """Its own, see MARK."""
    started: str = ""
    """When the process began, in the system's own words: a process id comes again, this time does not."""
    state: Literal["starting", "running"] = "running"

    @property
    def port(self) -> int:
        return self.ports["http"]

    @property
    def alive(self) -> bool:
        return bool(self.started) and _began(self.pid) == self.started

    def write(self) -> None:
        """Leave the note, readable by this user only."""
        file = _file(self.port)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        whole = dataclasses.replace(self, started=_began(self.pid))
        fresh = file.with_suffix(f".{self.pid}.new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(dataclasses.asdict(whole), indent=2) + "\n")
        fresh.replace(file)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            _file(self.port).unlink()

    @classmethod
    def find(cls, port: int | None = None) -> "Running":
        """The endpoint that runs on this machine, or the one on `port`. UserError where there is none, or several."""
        there = cls.all()
        if port is not None:
            there = [one for one in there if one.port == port]
        if not there:
            where = f" on port {port}" if port is not None else ""
            raise UserError(f"no endpoint of yours runs on this machine{where}; python serve/app.py starts one")
        if len(there) > 1:
            found = ", ".join(str(one.port) for one in there)
            raise UserError(f"several endpoints run on this machine (ports {found}): say which with --port")
        return there[0]

    @classmethod
    def all(cls) -> "list[Running]":
        """The endpoints of this user, by port. Also one whose command died without ending the rest."""
        found = []
        for file in sorted(_folder().glob("*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):  # gone meanwhile, or not ours
                found.append(cls(**json.loads(file.read_text())))
        return [one for one in found if one.alive or processes_of(one.folder)]


def refuse_twin(port: int) -> None:
    """UserError where an endpoint starts on this port, which does not listen yet, or has left processes behind."""
    for one in Running.all():
        if one.port == port:
            there = "an endpoint of yours" if one.alive else "what an endpoint of yours has left behind"
            raise UserError(
                f"{there} runs on port {port}: end it with python serve/app.py --down --port {port}, or give another "
                "--port"
            )


def end(running: Running) -> list[str]:
    """End an endpoint and all its processes; says what was ended, one line each. UserError for what cannot be ended."""
    told = []
    if running.alive:
        _signal(running.pid, signal.SIGTERM)
        _until_gone([running.pid], _ENDING_S)
        _until_gone(processes_of(running.folder), _KILL_S)  # they end with it, a moment later
        told.append(f"ended the endpoint at {running.url} (process {running.pid})")
    left = processes_of(running.folder)
    for number, patience_s in ((signal.SIGTERM, _KILL_S), (signal.SIGKILL, _KILL_S)):
        if pids := processes_of(running.folder):
            for pid in pids:
                _signal(pid, number)
            _until_gone(pids, patience_s)
    if left:
        told.append(f"ended {len(left)} processes that it had left behind")
    if stubborn := processes_of(running.folder):
        raise UserError(f"processes {', '.join(map(str, stubborn))} of the endpoint do not end; end them by hand")
    running.remove()
    return told


def processes_of(folder: str) -> list[int]:
    """The processes that belong to the endpoint of this folder, by the mark in their environment.

    Empty where the system does not show environments (macOS): there Ray's processes end with the command.
    """
    mark = f"{MARK}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # somebody else's, or gone
            if folder and mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid() and _began(pid)]


def _until_gone(pids: list[int], patience_s: float) -> None:
    """Wait until none of these processes is left, but no longer than this."""
    waiting = {pid: _began(pid) for pid in pids}
    deadline = time.monotonic() + patience_s
    while any(began and _began(pid) == began for pid, began in waiting.items()) and time.monotonic() < deadline:
        time.sleep(0.1)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise UserError(f"process {pid} belongs to somebody else; end it as that user") from None


def _began(pid: int) -> str:
    """When a process began, empty if there is none or it is only waiting to be cleared away."""
    try:
        # The name in the second field may hold anything, so count from the bracket that closes it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    done = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, began = done.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else began.strip()


def _folder() -> Path:
    return platformdirs.user_state_path("eagleray") / "endpoints"


def _file(port: int) -> Path:
    return _folder() / f"{port}.json"
