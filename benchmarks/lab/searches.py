"""Searches on the cluster: one that nothing happens to, one that everything happens to, and the laptop's."""

import argparse
import json
import time
from itertools import pairwise
from typing import Any

from labhosts import Lab, lab_of
from usercommands import BUCKET, SEARCH, data_in_bucket, differing, down, hyperparameters, search_command, trials_of

# The head's own copy of what each epoch reported, while the search runs.
_RESULTS = "find /tmp/ray/session_latest/ -path '*driver_artifacts*' -name result.json -exec cat {} +"
# More epochs than a failure takes to be noticed, and no early end.
_EPOCHS = 15
_LONG = "--workers-per-trial 2 --patience 0"


def search(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 1: two workers a trial on two spot machines, results in the bucket, idle workers gone, down; twice."""
    with lab_of(given) as lab:
        data, rounds = data_in_bucket(lab), []
        for number in range(given.rounds):
            up, begun = lab.ray_up(), time.monotonic()
            lab.say(lab.laptop(search_command(data, f"run{number}", "--workers-per-trial 2"))[-2500:])
            took = time.monotonic() - begun
            kinds = sorted(f"{one['type']} {one['market']}" for one in lab.workers())
            trials = trials_of(lab, f"run{number}")
            statuses = [row["status"] for row in trials]
            lab.say(f"search: {took:.0f} s, workers {kinds}, trials {statuses}")
            assert kinds == ["g6.xlarge spot"] * 2, f"not two workers of the first choice: {kinds}"
            assert statuses == ["finished"] * 3, f"not all trials finished: {statuses}"
            idle = lab.wait("idle workers terminated", lambda: not lab.workers(), 240)
            assert not lab.instances("stopped", "stopping"), "a worker was stopped, not terminated"
            seen = {"up_s": up, "search_s": took, "workers": kinds, "trials": len(trials), "idle_s": idle}
            rounds.append(seen | {"down_s": down(lab)})
        return {"rounds": rounds, "left": 0}


class Epochs:
    """When each trial reported which epoch, read from the head again and again: it goes when the head goes."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self.rows = lab, set[tuple[int, int, int]]()

    def read(self) -> set[tuple[int, int, int]]:
        """All that were ever seen: (trial, seconds since 1970, epoch)."""
        for line in self._lab.call("host", self._lab.head()["id"], "bash", "-c", _RESULTS, check=False).splitlines():
            try:
                row = json.loads(line)
                self.rows.add((int(row["config"]["trial"]), int(row["timestamp"]), int(row["epoch"])))
            except (ValueError, KeyError, TypeError):
                continue  # half a line, or the report of a failure
        return self.rows

    def wait_for_one_after(self, moment: float, what: str) -> None:
        """Until a trial has reported again."""
        self._lab.wait(f"an epoch {what}", lambda: any(at > moment for _, at, _ in self.read()), 600)


def again(rows: set[tuple[int, int, int]], begin: float, end: float) -> int:
    """The most epochs that one trial reported in this time although it had reported them before.

    The epoch that was under way at a failure is lost in part and not counted: it was not reported.
    """
    lost = {trial: 0 for trial, _, _ in rows}
    for trial in lost:
        reports = sorted((at, epoch) for one, at, epoch in rows if one == trial)
        lost[trial] = sum(max(0, was + 1 - now) for (_, was), (at, now) in pairwise(reports) if begin < at <= end)
    return max(lost.values(), default=0)


def failures(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 2: a notice for one worker, a crash of another, a crash of the head; then up again and --resume.

    Each may cost a trial one epoch, and in the end the trials are those of a search that nothing happened to.
    """
    with lab_of(given) as lab:
        data, epochs, moments = data_in_bucket(lab), Epochs(lab), []
        lab.ray_up()
        running = lab.background(search_command(data, "hit", _LONG, epochs=_EPOCHS), "hit.log")
        lab.wait("two workers", lambda: len(lab.workers()) >= 2, 240)
        epochs.wait_for_one_after(0, "before anything happens")
        first, second = lab.workers()[:2]
        moments.append(time.time())
        lab.reclaim(first, 30)
        epochs.wait_for_one_after(time.time(), "after the reclaim")
        moments.append(time.time())
        lab.say(f"crash {second['id']}")
        lab.call("crash", second["id"])
        epochs.wait_for_one_after(time.time() + 5, "after the crash")
        assert running.poll() is None, "the search ended before the head was lost: give it more epochs"
        moments.append(time.time())
        lab.say(f"crash the head {lab.head()['id']}")
        lab.call("crash", lab.head()["id"])
        running.terminate()
        lab.say((lab.project / "hit.log").read_text(errors="replace")[-2000:])
        lab.laptop("ray down -y cluster.yaml 2>&1", check=False)
        lab.ray_up("--no-config-cache")
        # Nothing of the search's settings: a resumed one has them from its folder.
        resumed = f"ray submit cluster.yaml tune/search.py -- --out {BUCKET}/hit --resume 2>&1"
        going_on = lab.background(resumed, "resumed.log")
        while going_on.poll() is None:
            epochs.read()
            time.sleep(1)
        epochs.read()
        lab.say((lab.project / "resumed.log").read_text(errors="replace")[-2500:])
        ends = [*moments[1:], time.time()]
        lost = [again(epochs.rows, begin, end) for begin, end in zip(moments, ends, strict=True)]
        lab.say(f"epochs reported twice after the notice, the crash and the head's crash: {lost}")
        trials = trials_of(lab, "hit")
        lab.laptop(search_command(data, "calm", _LONG, epochs=_EPOCHS))
        differ = differing(trials, trials_of(lab, "calm"))
        down(lab)
        statuses = [row["status"] for row in trials]
        assert statuses == ["finished"] * 3, f"not all trials finished: {statuses}"
        epochs_run = [(float(row["epochs_run"]), float(row["epochs"])) for row in trials]
        assert all(run == wanted for run, wanted in epochs_run), f"a trial did not train all its epochs: {epochs_run}"
        assert max(lost) <= 1, f"more than one epoch was trained again: {lost}"
        assert not set(differ) & {"trial", *hyperparameters(trials)}, f"other trials than without failures: {differ}"
        return {"trials": statuses, "epochs": epochs_run, "epochs_again": lost, "differ_from_calm": differ}


def same(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 10: one trial at a time on the cluster and on the laptop."""
    with lab_of(given) as lab:
        data = data_in_bucket(lab)
        on_laptop = f"--data {data} --out {BUCKET}/laptop {SEARCH} --epochs 4"
        lab.laptop(f"PYTHONPATH=/project python tune/search.py {on_laptop} 2>&1")
        lab.ray_up()
        lab.say(lab.laptop(search_command(data, "cluster"))[-1500:])
        ours, theirs = trials_of(lab, "cluster"), trials_of(lab, "laptop")
        differ = differing(ours, theirs)
        down(lab)
        assert not differ, f"these columns are not the same: {differ}"
        return {"trials": len(ours), "hyperparameters": hyperparameters(ours), "differ": differ}
