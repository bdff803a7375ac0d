"""The machine's lab with this project in front of its laptop: what run.py's subcommands stand on."""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PACKAGES = ("data", "models", "tune", "serve")
FILES = ("pyproject.toml", "README.md", "LICENSE")
# What runs on the laptop or the head and is not of the project.
SCRIPTS = ("prepare.py", "asking.py", "linkcost.py")
KEY_FILE = "~/.eagleray/keys.json"
_FABRIC = f"{os.environ.get('LAB_PREFIX', 'rl')}-fab"


class Lab:
    """The machine's lab, with a copy of the project in front of the laptop."""

    def __init__(self, folder: str, project: Path) -> None:
        self.folder, self.project = folder, project
        hidden = ":".join(str(ROOT / name) for name in (*PACKAGES, "tests", "benchmarks"))
        self.env = {
            "LAB_VENV": str(ROOT / ".venv"),
            "LAB_PROJECT": str(project),
            "LAB_HIDE": hidden,
            **{name: value for name, value in os.environ.items() if name.startswith("LAB_")},
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        }
        self.begun = time.monotonic()

    def say(self, text: str) -> None:
        """A line with the seconds since the beginning."""
        print(f"[{time.monotonic() - self.begun:6.1f}] {text}", flush=True)

    def call(self, *words: str, timeout: float = 900, check: bool = True) -> str:
        """`lab.py WORDS`: its output."""
        done = subprocess.run(
            [sys.executable, f"{self.folder}/lab.py", *words],
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"lab.py {' '.join(words)[:200]}: exit {done.returncode}\n{done.stdout[-3000:]}")
        return done.stdout

    def laptop(self, command: str, *, timeout: float = 900, check: bool = True) -> str:
        """A command of the user, in the project's folder."""
        return self.call("laptop", f"cd /project && {command}", timeout=timeout, check=check)

    def on_head(self, command: str, *, timeout: float = 900, check: bool = True) -> str:
        """A command on the head by `ray exec`, as a user gives it."""
        return self.laptop(f"ray exec cluster.yaml {_quoted(command)} 2>&1", timeout=timeout, check=check)

    def background(self, command: str, log: str) -> subprocess.Popen[bytes]:
        """A command of the user that goes on; its output in a file of the laptop's folder."""
        return self.begin("laptop", f"cd /project && {command}", log=log)

    def begin(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        """`lab.py WORDS`, without waiting for it."""
        with open(self.project / log, "wb") as file:
            return subprocess.Popen(
                [sys.executable, f"{self.folder}/lab.py", *words],
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def instances(self, *states: str) -> list[dict[str, str]]:
        """id, state, type, market, ip, public and name of each instance that is in one of the states; none: running."""
        keys = ("id", "state", "type", "market", "ip", "public", "name")
        found = [dict(zip(keys, line.split(), strict=False)) for line in self.call("ls").splitlines()]
        return [one for one in found if one["state"] in (states or ("running",))]

    def capacity(self, kind: str, most: int, market: str = "spot") -> None:
        """What EC2 has of a type from now on; lab.py's own command knows spot only."""
        asked = json.dumps({"type": kind, "market": market, "max": most})
        post = ["curl", "-sf", "-X", "POST", "-d", asked, "http://10.99.0.1:5001/capacity"]
        subprocess.run(["ip", "netns", "exec", _FABRIC, *post], check=True)

    def keep_router(self) -> None:
        """One hardware address of the router from now on.

        A Linux bridge takes the lowest address of its ports: a host that comes or goes changes it, and for up to a
        minute the others send what is for EC2 to an address that is no more. No router of a VPC does that.
        """
        subprocess.run(["ip", "-n", _FABRIC, "link", "set", "vpc0", "address", "02:00:ac:1f:00:01"], check=True)

    def workers(self) -> list[dict[str, str]]:
        return [one for one in self.instances() if one["name"].endswith("worker")]

    def head(self) -> dict[str, str]:
        return next(one for one in self.instances() if one["name"].endswith("head"))

    def reclaim(self, machine: dict[str, str], seconds: int) -> None:
        """EC2's notice, and the machine's end so many seconds later. TimeoutError where it was not drained before."""
        self.say(f"reclaim {machine['id']} with {seconds} s notice")
        taking = self.begin("reclaim", machine["id"], str(seconds), log="reclaim.log")
        # Of the host itself, so it is only read while the host is there.
        log = ("host", machine["id"], "cat", "/home/ubuntu/.eagleray/spotnotice.log")
        try:
            self.wait("it is drained", lambda: "drained, with" in self.call(*log, check=False), seconds)
        finally:
            taking.wait(timeout=seconds + 60)

    def wait(self, what: str, is_so: Callable[[], Any], seconds: float) -> float:
        """Seconds until it was so."""
        begun = time.monotonic()
        while not is_so():
            if time.monotonic() - begun > seconds:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s")
            time.sleep(1.0)
        self.say(f"{what}: after {time.monotonic() - begun:.0f} s")
        return time.monotonic() - begun

    def ray_up(self, options: str = "") -> float:
        """Seconds of `ray up`; tried again once: a raylet gives its agent 15 s to start, too few on a busy machine."""
        for attempt in (1, 2):
            begun = time.monotonic()
            try:
                self.laptop(f"ray up -y {options} cluster.yaml > ray-up.log 2>&1")
                self.on_head("ray status", timeout=120)
            except RuntimeError as error:
                log = (self.project / "ray-up.log").read_text(errors="replace")
                self.say(f"ray up failed: {log[-3000:]}\n{str(error)[-500:]}")
                if attempt == 2:
                    raise
                continue
            break
        seconds = time.monotonic() - begun
        self.say(f"ray up: {seconds:.0f} s (attempt {attempt})")
        return seconds


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _filled(text: str, names: dict[str, str]) -> str:
    """Only the names that are meant: commands have braces of their own."""
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text


def overlaid(committed: str, overlay: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The committed file as the lab runs it; a text of the overlay that is not in it ends the run."""
    for kind in ("fill", "replace"):
        for old, new in overlay[kind].items():
            if old not in committed:
                raise SystemExit(f"overlay.yaml: {old!r} is not in cluster.yaml; bring the overlay up to date")
            committed = committed.replace(old, _filled(str(new), names))
    config: dict[str, Any] = yaml.safe_load(committed)

    def merge(into: dict[str, Any], new: dict[str, Any]) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(config, overlay["merge"])
    return config


@contextlib.contextmanager
def lab_of(given: argparse.Namespace, **changes: str) -> Iterator[Lab]:
    """A lab with the project, a bucket and a token, and no machine yet. `changes`: texts of cluster.yaml to replace."""
    with tempfile.TemporaryDirectory(prefix="eagleray-lab-") as folder:
        project, source = Path(folder), Path(given.project)
        project.chmod(0o777)
        for name in PACKAGES:
            shutil.copytree(source / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(source / name, project / name)
        for name in SCRIPTS:
            shutil.copy(HERE / name, project / name)
        lab = Lab(given.lab, project)
        committed = (source / "cluster.yaml").read_text()
        (project / "cluster.yaml").write_text(committed)  # what prepare.py makes the roles for
        lab.say(lab.call("up").strip())  # not below: a lab that was up before is somebody else's
        try:
            lab.keep_router()
            prepared = json.loads(lab.laptop("python prepare.py").splitlines()[-1])
            names = {"subnets": json.dumps(prepared["subnets"]), "group": prepared["group"]}
            names["venv"] = lab.env["LAB_VENV"]
            config = overlaid(committed, yaml.safe_load((HERE / "overlay.yaml").read_text()), names)
            text = yaml.safe_dump(config, sort_keys=False, width=10_000)
            for old, new in changes.items():
                if old not in text:
                    raise SystemExit(f"{old!r} is not in cluster.yaml")
                text = text.replace(old, new)
            (project / "cluster.yaml").write_text(text)
            lab.laptop("ray get-auth-token --generate >/dev/null")
            lab.laptop(f"PYTHONPATH=. python serve/keys.py add lab --file {KEY_FILE} >key.txt 2>/dev/null")
            yield lab
        finally:
            lab.say(lab.call("down", check=False).strip().splitlines()[-1])
