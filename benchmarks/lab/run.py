"""What `ray up cluster.yaml` does, shown in a VPC on one machine: launcher, ssh, autoscaler, spot notices, and no AWS.

    sudo python benchmarks/lab/run.py search --lab /path/to/lab     # or another subcommand, or all

Prerequisites: Linux on x86-64, root, overlayfs, memory cgroups; Debian's iproute2 iptables openssh-server rsync sudo
curl; the lab's folder (lab.py, cloud.py, init.sh); LAB_VENV, this project's environment with its bytecode compiled (by
default .venv); LAB_CLOUD_PY, the python of an environment with moto[server,ec2,iam,s3,ssm]. Two cores and 12 GB are
enough for a head and two workers if nothing else runs. Where something is missing it says what, and ends with 0.

Each subcommand brings the lab up and down again, prints what it saw, and ends with one line of JSON; what does not hold
is under "failed" there, and the exit code is 1.
"""

import argparse
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from typing import Any

from endpoints import dashboard, endpoint
from labhosts import ROOT
from machines import capacity, link, ttl
from searches import failures, same, search

COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "search": search,
    "capacity": capacity,
    "ttl": ttl,
    "failures": failures,
    "same": same,
    "dashboard": dashboard,
    "endpoint": endpoint,
    "link": link,
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
    parser.add_argument(
        "--ttl", type=int, default=420, help="of ttl: seconds from the head's launch, `ray up` among them"
    )
    parser.add_argument("--mbit", type=int, default=200, help="of link: the rate of each host's link")
    parser.add_argument("--ray-dead", action="store_true", help="of ttl: Ray is stopped on the head before")
    given = parser.parse_args()
    if reason := missing(given):
        print(f"skipped: {reason}")
        return 0
    failed = False
    for name in COMMANDS if given.command == "all" else (given.command,):
        print(f"== {name}: {(COMMANDS[name].__doc__ or '').strip()}", flush=True)
        try:
            seen = COMMANDS[name](given)
        except Exception as error:  # a check that broke did not hold either, and the others are asked for too
            traceback.print_exc(file=sys.stdout)
            seen = {"failed": str(error) or repr(error)}
        failed = failed or "failed" in seen
        print(json.dumps({"command": name, **seen}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
