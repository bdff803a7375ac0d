"""Machines that come, do not come, go, and the link between two of them."""

import argparse
import json
import time
from typing import Any

from labhosts import Lab, lab_of
from usercommands import ask_for, down

_BEFORE_END = 15


def capacity(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 3: the first type is not to be had, then no spot, then nothing."""
    with lab_of(given) as lab:
        lab.ray_up()
        lab.capacity("g6.xlarge", 0)
        ask_for(lab, 1)
        taken = lab.wait("another type took over", lab.workers, 120)
        first = f"{lab.workers()[0]['type']} {lab.workers()[0]['market']}"
        assert first == "g5.xlarge spot", f"the next choice is g5.xlarge spot, and {first} came"
        for kind in ("g5.xlarge", "g4dn.xlarge"):
            lab.capacity(kind, 0)
        ask_for(lab, 2)
        last = lab.wait("on demand took over", lambda: any(w["market"] == "on-demand" for w in lab.workers()), 180)
        for kind in ("g6.xlarge", "g4dn.xlarge"):
            lab.capacity(kind, 0, "on-demand")
        ask_for(lab, 3)
        begun = time.monotonic()
        while "No worker can be launched" not in lab.on_head("cat ~/.eagleray/fallback.log"):
            assert time.monotonic() - begun < 240, "nobody was told"
            time.sleep(2)
        told = time.monotonic() - begun
        logs = "/tmp/ray/session_latest/logs"
        lab.say(lab.on_head(f"cat ~/.eagleray/fallback.log {logs}/monitor-eagleray.log"))
        lab.say(lab.on_head(f"grep -E 'o launch|Launch(ed|ing)' {logs}/monitor.log | cut -c1-160"))
        ask_for(lab, 0)
        down(lab)
        return {"took_over": first, "seconds": taken, "on_demand_s": last, "message_s": told}


def ttl(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 5: head, workers and a waiting demand; the laptop does nothing any more."""
    with lab_of(given, **{"--ttl 12h": f"--ttl {given.ttl}s"}) as lab:
        lab.ray_up()
        ask_for(lab, 2)
        lab.wait("a worker", lab.workers, given.ttl)
        there = {one["id"] for one in lab.instances()}
        lab.say(lab.on_head("cat ~/.eagleray/timetolive.log"))
        state = lab.on_head("cat ~/.eagleray/timetolive.json")
        end = float(state.split('"started":')[1].split(",")[0]) + given.ttl
        if given.ray_dead:
            lab.call("host", lab.head()["id"], "bash", "-c", "kill -9 $(pgrep -x raylet) $(pgrep -x gcs_server)")
            lab.say("Ray is dead on the head")
        lab.wait("its last seconds", lambda: time.time() >= end - _BEFORE_END, given.ttl)
        early = there - {one["id"] for one in lab.instances()}
        assert not early, f"gone before the time was up: {early}"
        lab.wait("the end of its time", lambda: time.time() >= end, 2 * _BEFORE_END)
        alive = ("running", "pending", "stopped", "stopping")
        head = lab.head()["id"]
        try:
            gone = lab.wait("everything gone", lambda: not lab.instances(*alive), 60)
        except TimeoutError:
            lab.say(f"left: {lab.instances(*alive)}")
            lab.say(lab.call("host", head, "cat", "/home/ubuntu/.eagleray/timetolive.log", check=False))
            raise
        time.sleep(30)
        assert not lab.instances(*alive), "something was launched again"
        return {"ttl_s": given.ttl, "machines": len(there), "gone_after_s": gone}


def link(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 7: a step of ResNet18 on one host and on two, over a link of 200 Mbit/s and over none that counts.

    The computed cost of the gradients is what a ring moves through each host's link, one way: 2 (n - 1) / n of their
    bytes.
    """
    with lab_of(given) as lab:
        lab.ray_up()
        ask_for(lab, 2)
        lab.wait("two workers", lambda: len(lab.workers()) == 2, 240)
        free = _steps(lab, 0)
        for worker in lab.workers():
            lab.call("rate", worker["id"], str(given.mbit))
        slow = _steps(lab, given.mbit)
        ask_for(lab, 0)
        down(lab)
        measured = slow["two_s"] - free["two_s"]
        lab.say(
            f"gradients: {slow['gradients_mb']:.1f} MB, computed {slow['computed_s']:.2f} s, measured {measured:.2f} s"
        )
        return {"mbit": given.mbit, "free": free, "limited": slow, "measured_s": measured}


def _steps(lab: Lab, mbit: int) -> dict[str, Any]:
    """What linkcost.py prints last."""
    text = lab.laptop(f"ray submit cluster.yaml linkcost.py -- --mbit {mbit} 2>&1")
    lines = [line for line in text.splitlines() if line.startswith('{"alone_s"')]
    if not lines:
        raise RuntimeError(f"linkcost.py printed no times:\n{text[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    lab.say(f"{mbit or 'no'} Mbit/s limit: {found}")
    return found
