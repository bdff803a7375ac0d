"""Thirty kills at random moments of one search: driver, worker, raylet. Long, so by hand: `pytest -m kill`."""

import json
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.commands import PATIENCE_S, Command, run

pytestmark = pytest.mark.kill

KILLS = 30
TIMED = ["seconds", "cpu_seconds", "cost_s", "cost_usd", "images_per_second"]
KINDS = ("driver", "worker", "raylet")
TRIALS = 12
# Long enough that kills meet trials at work from first to last. Pruning is on: its decisions have to survive too.
SETTINGS = ["--image-size", "64", "--epochs", "24", "--patience", "0", "--trials", str(TRIALS)]
SETTINGS += ["--max-concurrent", "1", "--cpus", "1", "--dense-units", "16", "--learning-rate", "0.002"]
# A kill comes within a second of so many epochs since the last one, however fast the machine is; each fifth comes while
# the search still starts.
MOST_EPOCHS, AT_WORK_S, STARTING_S = 8, 1.0, 6.0


def search(photos: Path, cache_dir: str, out: Path, *more: str) -> list[str]:
    return ["tune/search.py", "--data", str(photos / "labels.csv"), "--out", str(out), "--cache-dir", cache_dir, *more]


def test_thirty_kills_change_nothing(photos: Path, cache_dir: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run(*search(photos, cache_dir, whole, *SETTINGS))
    expected = pd.read_csv(whole / "trials.csv")
    assert set(expected["status"]) == {"finished", "pruned"}

    out, chance = tmp_path / "killed", random.Random(4)
    counts = dict.fromkeys(KINDS, 0)
    seen: dict[int, str] = {}
    while sum(counts.values()) < KILLS:
        with started(photos, cache_dir, out) as command:
            struck = ""
            while struck in ("", "worker") and sum(counts.values()) < KILLS:
                # A search that has all its trials ends soon: the kills that are left meet its last steps.
                starting = sum(counts.values()) % 5 == 4 or len(seen) == TRIALS
                if not starting:
                    wait_for_epochs(command, out, chance.randint(1, MOST_EPOCHS))
                time.sleep(chance.uniform(0, STARTING_S if starting else AT_WORK_S))
                struck = strike(command, KINDS[sum(counts.values()) % len(KINDS)])
                if not struck:
                    command.end()  # it came to its end before: the next one is resumed to itself
                    break
                counts[struck] += 1
        seen |= ended(out, seen)
        print(f"{counts}: {len(seen)} trials have ended", flush=True)
    run(*search(photos, cache_dir, out, "--resume"))

    assert min(counts.values()) >= KILLS // 4, counts
    same_search(expected, pd.read_csv(out / "trials.csv"))
    assert study_of(out) == study_of(whole)
    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, out)]
    for key in ("search", "validation", "test", "bundle"):
        told = [{**report[key], "path": None} for report in reports]
        assert told[0] == told[1], key


def started(photos: Path, cache_dir: str, out: Path) -> Command:
    """The search, begun or gone on with, at the moment in which its trials begin."""
    arguments = ["--resume"] if (out / "settings.json").exists() else SETTINGS
    command = Command(*search(photos, cache_dir, out, *arguments))
    command.wait_for(r"(?m)^cost ")
    return command


def wait_for_epochs(command: Command, out: Path, count: int) -> None:
    """Until the table of trials has so many epochs more than now, or the command has ended."""
    begun, enough = time.time(), epochs_done(out) + count
    while command.running and epochs_done(out) < enough:
        assert time.time() < begun + PATIENCE_S, f"no {count} epochs:\n{command.text}"
        time.sleep(0.1)


def epochs_done(out: Path) -> float:
    table = out / "trials.csv"
    return float(pd.read_csv(table)["epochs_run"].sum()) if table.exists() else 0.0


def strike(command: Command, kind: str) -> str:
    """Kill a process of the running command; which kind it was, "" where the command had ended."""
    try:
        below = psutil.Process(command.pid).children(recursive=True)
        names = {process.pid: " ".join(process.cmdline()) for process in below}
    except psutil.NoSuchProcess:
        return ""
    workers = [pid for pid, name in names.items() if name.startswith(("ray::Trial", "ray::ResourceTrainable"))]
    raylets = [pid for pid, name in names.items() if "raylet/raylet" in name]
    found = {"driver": [command.pid], "worker": workers, "raylet": raylets}[kind]
    kind, pid = (kind, found[0]) if found else ("driver", command.pid)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    if kind != "worker":  # the driver is gone, or left without the machine that it needs
        time.sleep(1)
        if psutil.pid_exists(command.pid):
            command.signal(signal.SIGKILL)
        command.end()
        end_the_rest(below)
    return kind


def end_the_rest(processes: list[psutil.Process]) -> None:
    """What a killed driver leaves of its own Ray ends by itself; whatever has not is ended here."""
    _, alive = psutil.wait_procs(processes, timeout=20)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=20)


def study_of(out: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(out / "study.db") as study:
        return study.execute("select number, state from trials order by number").fetchall()


def ended(out: Path, seen: dict[int, str]) -> dict[int, str]:
    """What trials.csv says of ended trials; one that was there before must be there still, to the digit."""
    if not (out / "trials.csv").exists():
        return {}
    table = pd.read_csv(out / "trials.csv").drop(columns=[*TIMED, "error"])
    rows = table[table["status"].isin(["finished", "pruned"])].astype({"epochs_run": int, "best_epoch": int})
    now = {int(row["trial"]): repr(row.to_list()) for _, row in rows.iterrows()}
    for number, row in seen.items():
        assert now.get(number) == row, f"trial {number} changed"
    return now


def same_search(expected: pd.DataFrame, got: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(expected.drop(columns=TIMED), got.drop(columns=TIMED))
