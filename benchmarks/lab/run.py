"""What `ray up cluster.yaml` does, shown in a VPC on one machine: launcher, ssh, autoscaler, spot notices, and no AWS.

    sudo python benchmarks/lab/run.py search --lab /path/to/lab     # or: failures, capacity, ttl, same, dashboard, all

Prerequisites: Linux on x86-64, root, overlayfs, memory cgroups; Debian's iproute2 iptables openssh-server rsync sudo
curl; the lab's folder (lab.py, cloud.py, init.sh); LAB_VENV, this project's environment with its bytecode compiled (by
default .venv); LAB_CLOUD_PY, the python of an environment with moto[server,ec2,iam,s3,ssm]. Two cores and 12 GB are
enough for a head and two workers if nothing else runs. Where something is missing it says what, and ends with 0.

Each subcommand brings the lab up and down again, prints what it saw, and ends with one line of JSON.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PACKAGES = ("data", "models", "tune", "serve")
FILES = ("pyproject.toml", "README.md", "LICENSE")
BUCKET = "s3://eagleray-lab"
# 4 epochs of a small CNN on two processes: half a minute a trial here, long enough to lose a machine in.
SEARCH = "--trials 3 --max-concurrent 1 --epochs 4 --image-size 48 --prune off --seed 0"


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
        with open(self.project / log, "wb") as file:
            return subprocess.Popen(
                [sys.executable, f"{self.folder}/lab.py", "laptop", f"cd /project && {command}"],
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
        subprocess.run(["ip", "netns", "exec", f"{os.environ.get('LAB_PREFIX', 'rl')}-fab", *post], check=True)

    def workers(self) -> list[dict[str, str]]:
        return [one for one in self.instances() if one["name"].endswith("worker")]

    def head(self) -> dict[str, str]:
        return next(one for one in self.instances() if one["name"].endswith("head"))

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
        shutil.copy(HERE / "prepare.py", project / "prepare.py")
        lab = Lab(given.lab, project)
        lab.say(lab.call("up").strip())  # not below: a lab that was up before is somebody else's
        try:
            prepared = json.loads(lab.laptop("python prepare.py").splitlines()[-1])
            names = {"subnets": json.dumps(prepared["subnets"]), "group": prepared["group"]}
            names["venv"] = lab.env["LAB_VENV"]
            committed = (source / "cluster.yaml").read_text()
            config = overlaid(committed, yaml.safe_load((HERE / "overlay.yaml").read_text()), names)
            text = yaml.safe_dump(config, sort_keys=False, width=10_000)
            for old, new in changes.items():
                if old not in text:
                    raise SystemExit(f"{old!r} is not in cluster.yaml")
                text = text.replace(old, new)
            (project / "cluster.yaml").write_text(text)
            lab.laptop("ray get-auth-token --generate >/dev/null")
            yield lab
        finally:
            lab.say(lab.call("down", check=False).strip().splitlines()[-1])


# Commands of the user that are Python: run on the laptop, or on the head by `ray exec`.
_IMPORT = "import sys; sys.path.insert(0, '/project'); from data import sample, store; "
_REQUEST = (
    "import ray; ray.init(logging_level=30); import ray.autoscaler.sdk; "
    "ray.autoscaler.sdk.request_resources(bundles=[dict(CPU=1)] * {})"
)


def _python(code: str) -> str:
    return f'python -c "{code}"'


def _data(lab: Lab) -> str:
    """The generated sample in the bucket: the address of its table."""
    copy = f"table = sample.ensure('/tmp/sample', 0); store.upload_folder(table.rpartition('/')[0], '{BUCKET}/dives')"
    lab.laptop(_python(_IMPORT + copy))
    return f"{BUCKET}/dives/labels.csv"


def _search(lab: Lab, data: str, out: str, more: str = "") -> str:
    return f"ray submit cluster.yaml tune/search.py -- --data {data} --out {BUCKET}/{out} {SEARCH} {more} 2>&1"


def _trials(lab: Lab, out: str) -> list[dict[str, str]]:
    """The rows of a run's trials.csv in the bucket."""
    text = lab.laptop(_python(_IMPORT + f"print(store.read('{BUCKET}/{out}/trials.csv').decode())"))
    return list(csv.DictReader(text.strip().splitlines()))


def _down(lab: Lab) -> float:
    begun = time.monotonic()
    lab.laptop("ray down -y cluster.yaml 2>&1")
    left = lab.instances("running", "pending", "stopped", "stopping")
    if left:
        raise AssertionError(f"left after ray down: {left}")
    return time.monotonic() - begun


def _ask(lab: Lab, cpus: int) -> None:
    """As many CPUs as a search would wait for; 0 takes the wish back."""
    lab.on_head(_python(_REQUEST.format(cpus)))


def search(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 1: two workers a trial on two spot machines, results in the bucket, idle workers gone, down; twice."""
    with lab_of(given) as lab:
        data, rounds = _data(lab), []
        for number in range(given.rounds):
            up, begun = lab.ray_up(), time.monotonic()
            lab.say(lab.laptop(_search(lab, data, f"run{number}", "--workers-per-trial 2"))[-2500:])
            took = time.monotonic() - begun
            kinds = sorted(f"{one['type']} {one['market']}" for one in lab.workers())
            trials = _trials(lab, f"run{number}")
            lab.say(f"search: {took:.0f} s, workers {kinds}, trials {[row['status'] for row in trials]}")
            idle = lab.wait("idle workers terminated", lambda: not lab.workers(), 240)
            assert not lab.instances("stopped", "stopping"), "a worker was stopped, not terminated"
            seen = {"up_s": up, "search_s": took, "workers": kinds, "trials": len(trials), "idle_s": idle}
            rounds.append(seen | {"down_s": _down(lab)})
        return {"rounds": rounds, "left": 0}


def capacity(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 3: the first type is not to be had, then no spot, then nothing."""
    with lab_of(given) as lab:
        lab.ray_up()
        lab.capacity("g6.xlarge", 0)
        _ask(lab, 1)
        taken = lab.wait("another type took over", lab.workers, 120)
        first = f"{lab.workers()[0]['type']} {lab.workers()[0]['market']}"
        for kind in ("g5.xlarge", "g4dn.xlarge"):
            lab.capacity(kind, 0)
        _ask(lab, 2)
        last = lab.wait("on demand took over", lambda: any(w["market"] == "on-demand" for w in lab.workers()), 180)
        for kind in ("g6.xlarge", "g4dn.xlarge"):
            lab.capacity(kind, 0, "on-demand")
        _ask(lab, 3)
        begun = time.monotonic()
        while "No worker can be launched" not in lab.on_head("cat ~/.eagleray/fallback.log"):
            assert time.monotonic() - begun < 240, "nobody was told"
            time.sleep(2)
        told = time.monotonic() - begun
        logs = "/tmp/ray/session_latest/logs"
        lab.say(lab.on_head(f"cat ~/.eagleray/fallback.log {logs}/monitor-eagleray.log"))
        lab.say(lab.on_head(f"grep -E 'o launch|Launch(ed|ing)' {logs}/monitor.log | cut -c1-160"))
        _ask(lab, 0)
        _down(lab)
        return {"took_over": first, "seconds": taken, "on_demand_s": last, "message_s": told}


def ttl(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 5: head, workers and a waiting demand; the laptop does nothing any more."""
    with lab_of(given, **{"--ttl 12h": f"--ttl {given.ttl}s"}) as lab:
        lab.ray_up()
        _ask(lab, 2)
        with contextlib.suppress(TimeoutError):
            lab.wait("a worker", lab.workers, 60)
        lab.say(lab.on_head("cat ~/.eagleray/timetolive.log"))
        state = lab.on_head("cat ~/.eagleray/timetolive.json")
        end = float(state.split('"started":')[1].split(",")[0]) + given.ttl
        if given.ray_dead:
            lab.call("host", lab.head()["id"], "bash", "-c", "kill -9 $(pgrep -x raylet) $(pgrep -x gcs_server)")
            lab.say("Ray is dead on the head")
        lab.wait("the end of its time", lambda: time.time() >= end, given.ttl + 60)
        alive = ("running", "pending", "stopped", "stopping")
        gone = lab.wait("everything gone", lambda: not lab.instances(*alive), 120)
        time.sleep(30)
        assert not lab.instances(*alive), "something was launched again"
        return {"ttl_s": given.ttl, "gone_after_s": gone}


def failures(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 2: a notice for one worker, a crash of the other, a crash of the head; then up again and --resume."""
    with lab_of(given) as lab:
        data = _data(lab)
        lab.ray_up()
        running = lab.background(_search(lab, data, "hit", "--workers-per-trial 2"), "hit.log")

        def text() -> str:
            return (lab.project / "hit.log").read_text(errors="replace")

        lab.wait("two workers", lambda: len(lab.workers()) >= 2, 240)
        lab.wait("the first trial", lambda: "trial" in text().lower() and "images" in text(), 300)
        one, two = lab.workers()[:2]
        lab.say(f"reclaim {one['id']} with 30 s notice")
        lab.call("reclaim", one["id"], "30")
        lab.say(lab.call("ls"))
        time.sleep(20)
        lab.say(f"crash {two['id']}")
        lab.call("crash", two["id"])
        time.sleep(40)
        lab.say(f"crash the head {lab.head()['id']}")
        head = lab.head()["id"]
        lab.call("crash", head)
        running.terminate()
        lab.say(text()[-2000:])
        lab.laptop("ray down -y cluster.yaml 2>&1", check=False)
        lab.ray_up("--no-config-cache")
        resumed = f"ray submit cluster.yaml tune/search.py -- --out {BUCKET}/hit --resume 2>&1"
        lab.say(lab.laptop(resumed, check=False)[-2500:])
        trials = _trials(lab, "hit")
        _down(lab)
        return {"trials": [row["status"] for row in trials]}


def same(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 10: one trial at a time on the cluster and on the laptop."""
    with lab_of(given) as lab:
        data = _data(lab)
        lab.laptop(f"PYTHONPATH=/project python tune/search.py --data {data} --out {BUCKET}/laptop {SEARCH} 2>&1")
        lab.ray_up()
        lab.say(lab.laptop(_search(lab, data, "cluster"))[-1500:])
        ours, theirs = _trials(lab, "cluster"), _trials(lab, "laptop")
        same_columns = [c for c in ours[0] if not c.endswith(("_s", "seconds", "usd", "started", "per_second"))]
        differ = [c for c in same_columns if [r[c] for r in ours] != [r[c] for r in theirs]]
        _down(lab)
        return {"trials": len(ours), "columns": len(same_columns), "differ": differ}


def _curl(lab: Lab, address: str, header: str = "") -> tuple[int, str]:
    """Status and body of a request from the laptop; 0 where nobody listens."""
    given = f"-H '{header}'" if header else ""
    text = lab.laptop(f"curl -s -m 20 -w '\\n%{{http_code}}' {given} '{address}'", check=False).rstrip()
    body, _, status = text.rpartition("\n")
    return int(status), body


def _panels(lab: Lab, file: str) -> dict[str, list[str]]:
    """The titles of a dashboard's panels, by whether Prometheus has anything for one of their queries."""
    found: dict[str, list[str]] = {"data": [], "none": []}
    for panel in json.loads((lab.project / file).read_text())["panels"]:
        queries = [target["expr"] for target in panel.get("targets", ())]
        if queries:
            answers = [_query(lab, query) for query in queries]
            found["data" if any(answers) else "none"].append(panel["title"])
    return found


def _query(lab: Lab, query: str) -> list[Any]:
    for name, value in {"$__rate_interval": "1m", "$__interval": "1m", "$__range": "10m"}.items():
        query = query.replace(name, value)
    query = urllib.parse.quote(re.sub(r"\$\{?\w+\}?", ".*", query))
    status, body = _curl(lab, f"http://localhost:9090/api/v1/query?query={query}")
    return json.loads(body)["data"]["result"] if status == 200 else []


def dashboard(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 9: through the tunnel, with the token and without it; Prometheus, and what our panels ask of it."""
    with lab_of(given, **{"EAGLERAY_METRICS=0": "EAGLERAY_METRICS=1"}) as lab:
        data = _data(lab)
        lab.ray_up()
        tunnel = lab.background("ray exec cluster.yaml -p 8265 -p 9090 'sleep 3000'", "tunnel.log")
        url, token = "http://localhost:8265", lab.laptop("cat ~/.ray/auth_token").strip()
        lab.wait("the tunnel", lambda: _curl(lab, url)[0] == 200, 60)
        paths = ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/serve/applications/")
        with_token = f"Authorization: Bearer {token}"
        seen = {path: [_curl(lab, url + path)[0], _curl(lab, url + path, with_token)[0]] for path in paths}
        lab.say(f"status without and with the token: {seen}")
        running = lab.background(_search(lab, data, "watched"), "watched.log")
        lab.wait("the search's gauges", lambda: _query(lab, '{__name__=~"ray_eagleray.*"}'), 300)
        time.sleep(30)
        panels = {file: _panels(lab, file) for file in ("tune/grafana.json", "serve/watching/grafana.json")}
        lab.say(json.dumps(panels, indent=1))
        lab.say(lab.on_head("ls ~/.eagleray; ss -ltn | grep -E ':(3000|9090|8265) '"))
        for process in (running, tunnel):
            process.terminate()
        _down(lab)
        counts = {file: {kind: len(titles) for kind, titles in found.items()} for file, found in panels.items()}
        return {"status": seen, "panels": counts}


COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "search": search,
    "capacity": capacity,
    "ttl": ttl,
    "failures": failures,
    "same": same,
    "dashboard": dashboard,
}


def missing(given: argparse.Namespace) -> str:
    """Why the lab cannot run here; "" where it can."""
    if os.geteuid():
        return "it needs root"
    if not os.path.isfile(f"{given.lab}/lab.py"):
        return f"there is no lab.py in {given.lab}"
    if not os.environ.get("LAB_CLOUD_PY"):
        return "set LAB_CLOUD_PY to the python of an environment with moto[server,ec2,iam,s3,ssm]"
    tools = [tool for tool in ("ip", "iptables", "rsync", "sudo", "curl", "ssh-keygen") if not shutil.which(tool)]
    return f"these are not installed: {', '.join(tools)}" if tools else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*COMMANDS, "all"])
    parser.add_argument("--lab", required=True, help="the folder of lab.py")
    parser.add_argument("--project", default=str(ROOT), help="another checkout to take to the laptop")
    parser.add_argument("--rounds", type=int, default=2, help="of search: up and down so often")
    parser.add_argument("--ttl", type=int, default=240, help="of ttl: seconds from the head's launch")
    parser.add_argument("--ray-dead", action="store_true", help="of ttl: Ray is stopped on the head before")
    given = parser.parse_args()
    if reason := missing(given):
        print(f"skipped: {reason}")
        return 0
    for name in COMMANDS if given.command == "all" else (given.command,):
        print(f"== {name}: {(COMMANDS[name].__doc__ or '').strip()}", flush=True)
        print(json.dumps({"command": name, **COMMANDS[name](given)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
