"""`python tune/search.py` as it is typed: from disk and bucket alike, interrupted, killed, resumed."""

import json
import re
import signal
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from data import store
from models import checkpoint
from models.predictor import Predictor
from tests.commands import Command, run

pytestmark = pytest.mark.ray

TIMED = ["seconds", "cpu_seconds", "cost_s", "cost_usd", "images_per_second"]

# One trial at a time on one thread: what makes two searches comparable to the digit.
QUICK = ("--image-size", "16", "--epochs", "3", "--batch-size", "16", "--trials", "3", "--max-concurrent", "1")
SLOW = (
    "--image-size",
    "32",
    "--epochs",
    "40",
    "--patience",
    "0",
    "--trials",
    "4",
    "--max-concurrent",
    "1",
    "--cpus",
    "1",
    "--prune",
    "off",
)
# An epoch takes long enough for a second Ctrl-C to come before its end.
LONG_EPOCHS = ("--image-size", "224", "--epochs", "3", "--patience", "0", "--trials", "2", "--max-concurrent", "1")


def search(photos: Path, cache_dir: str, out: str | Path, *more: str) -> list[str]:
    return ["tune/search.py", "--data", str(photos / "labels.csv"), "--out", str(out), "--cache-dir", cache_dir, *more]


def token() -> str:
    return (Path.home() / ".ray" / "auth_token").read_text().strip()


def ask(address: str, bearer: str | None) -> int:
    request = urllib.request.Request(f"http://{address}/api/version")
    if bearer:
        request.add_header("Authorization", f"Bearer {bearer}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_ctrl_c_leaves_a_usable_result_and_resume_goes_on(photos: Path, cache_dir: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Command(*search(photos, cache_dir, out, *SLOW)) as command:
        address = command.wait_for(r"dashboard +(\S+)").group(1)
        assert ask(address, token()) == 200  # the dashboard is on while the search runs
        assert ask(address, None) == 401
        command.wait_for(r"trial +0 ")
        command.signal(signal.SIGINT)
        assert command.end() == 0
    assert "ending: Ctrl-C; the running epochs are finished first; once more stops at once" in command.text
    assert f"uv run tune/search.py --resume --out {out}" in command.text
    before = pd.read_csv(out / "trials.csv")
    assert 1 <= len(before) < 4
    begun = before[before["epochs_run"] > 0]
    epochs_before = {int(number): kept_epochs(out, int(number)) for number in begun["trial"]}
    assert {number: len(epochs) for number, epochs in epochs_before.items()} == dict(
        zip(begun["trial"], begun["epochs_run"], strict=True)
    )
    assert Predictor.load(str(out / "bundle")).info.classes == ("crab", "sponge")

    printed = run(*search(photos, cache_dir, out, "--resume"))
    check_resumed(out, before, printed)
    for number, epochs in epochs_before.items():  # no epoch was lost, and none trained again: its seconds would differ
        assert kept_epochs(out, number)[: len(epochs)] == epochs


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_that_had_ended(
    photos: Path, cache_dir: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with Command(*search(photos, cache_dir, out, *LONG_EPOCHS)) as command:
        command.wait_for(r"trial +0 ")
        command.signal(signal.SIGINT)
        command.wait_for("once more stops at once")
        command.signal(signal.SIGINT)
        assert command.end() == 130
    assert "Traceback" not in command.text
    assert not (out / "bundle").exists()
    assert list(pd.read_csv(out / "trials.csv")["status"][:1]) == ["finished"]
    run(*search(photos, cache_dir, out, "--resume"))
    assert list(pd.read_csv(out / "trials.csv")["status"]) == ["finished", "finished"]
    assert Predictor.load(str(out / "bundle")).info.classes == ("crab", "sponge")


def test_a_killed_search_goes_on_with_resume(photos: Path, cache_dir: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Command(*search(photos, cache_dir, out, *SLOW)) as command:
        command.wait_for(r"trial +1 ")
        command.signal(signal.SIGKILL)
        command.end()
    before = pd.read_csv(out / "trials.csv")
    assert set(before["status"][:2]) == {"finished"}  # what had finished is on disk

    refused = run(*search(photos, cache_dir, out, *SLOW), code=2)
    assert "--resume to go on" in refused
    refused = run(*search(photos, cache_dir, out, "--resume", "--trials", "9"), code=2)
    assert "--trials (was 4)" in refused
    moved = out.rename(tmp_path / "elsewhere")
    refused = run(*search(photos, cache_dir, moved, "--resume"), code=2)
    assert f"was begun as {out}" in refused
    moved.rename(out)
    printed = run(*search(photos, cache_dir, out, "--resume"))
    check_resumed(out, before, printed)


def test_a_search_killed_with_its_results_in_a_bucket_goes_on_on_another_machine(
    photos: Path, cache_dir: str, tmp_path: Path, bucket: str
) -> None:
    """Another cache folder stands for the other machine: it has no local copy of the study."""
    out, copy = f"{bucket}/run", tmp_path / "copy"
    with Command(*search(photos, cache_dir, out, *SLOW)) as command:
        command.wait_for(r"trial +0 ")
        command.signal(signal.SIGKILL)
        command.end()
    store.download_folder(out, str(copy))
    before = pd.read_csv(copy / "trials.csv")
    printed = run(*search(photos, str(tmp_path / "cache"), out, "--resume"))
    store.download_folder(out, str(copy))
    check_resumed(copy, before.drop(columns=TIMED), printed)  # the last seconds of a trial may be trained again


def test_a_machine_lost_in_its_first_trial_leaves_a_search_that_goes_on_elsewhere(
    photos: Path, cache_dir: str, tmp_path: Path, bucket_place: str
) -> None:
    """No trial has ended, so nothing but copies of the state has reached the bucket since the beginning."""
    out, copy = f"{bucket_place}/run", tmp_path / "copy"
    with Command(*search(photos, cache_dir, out, "--trials", "1", "--image-size", "64", *SLOW[2:6])) as command:
        command.wait_until(lambda: store.list_files(f"{out}/ray/tune/trial-0000"), "a checkpoint")
        command.wait_until(lambda: store.exists(f"{out}/ray/state.zip"), "a copy of the state")
        command.signal(signal.SIGKILL)
        command.end()
    assert not store.exists(f"{out}/trials.csv")
    run(*search(photos, str(tmp_path / "cache"), out, "--resume"))
    store.download_folder(out, str(copy))
    assert pd.read_csv(copy / "trials.csv")[["trial", "status", "epochs_run"]].values.tolist() == [[0, "finished", 40]]


def kept_epochs(out: Path, number: int) -> list[dict[str, float]]:
    """The scores of a trial's epochs in its last checkpoint."""
    last = max((out / "ray" / "tune" / f"trial-{number:04d}").glob("checkpoint_*"))
    scores: list[dict[str, float]] = checkpoint.read(str(last))["scores"]
    return scores


def check_resumed(out: Path, before: pd.DataFrame, printed: str) -> None:
    """All trials finished, none twice; those that had finished before are as they were."""
    after = pd.read_csv(out / "trials.csv")
    assert list(after["trial"]) == [0, 1, 2, 3]
    assert set(after["status"]) == {"finished"}
    done = before[before["status"] == "finished"].drop(columns="error")
    same = after.loc[after["trial"].isin(done["trial"]), done.columns]
    pd.testing.assert_frame_equal(same, done, check_dtype=False)
    with sqlite3.connect(out / "study.db") as study:
        assert study.execute("select count(*), count(distinct number) from trials").fetchone() == (4, 4)
        assert {row[0] for row in study.execute("select state from trials")} == {"COMPLETE"}
    report = json.loads((out / "report.json").read_text())
    assert report["search"]["trials"] == 4
    assert "bundle" in printed


def test_a_bucket_gives_the_same_search_as_the_disk(
    photos: Path, cache_dir: str, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    store.upload_folder(str(photos), f"{bucket}/photos")
    run(*search(photos, cache_dir, disk, *QUICK))
    remote = [
        "--data",
        f"{bucket}/photos/labels.csv",
        "--out",
        f"{bucket}/runs/a",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    printed = run("tune/search.py", *remote, *QUICK)
    assert f"uv run serve/app.py --bundle {bucket}/runs/a/bundle" in printed

    copy = tmp_path / "copy"
    store.download_folder(f"{bucket}/runs/a", str(copy))
    trials = [pd.read_csv(folder / "trials.csv").drop(columns=TIMED) for folder in (disk, copy)]
    pd.testing.assert_frame_equal(trials[0], trials[1])
    manifests = [pd.read_csv(folder / "manifest.csv") for folder in (disk, copy)]
    manifests[0]["path"] = manifests[0]["path"].str.removeprefix(f"{photos}/")
    manifests[1]["path"] = manifests[1]["path"].str.removeprefix(f"{bucket}/photos/")
    pd.testing.assert_frame_equal(manifests[0], manifests[1])
    reports = [json.loads((folder / "report.json").read_text()) for folder in (disk, copy)]
    for key in ("test", "validation", "search"):
        assert reports[0][key] == reports[1][key], key
    assert reports[0]["data"]["fingerprints"] == reports[1]["data"]["fingerprints"]
    assert Predictor.load(f"{bucket}/runs/a/bundle").info.id == Predictor.load(str(disk / "bundle")).info.id


def test_a_second_search_rebuilds_no_pack_and_a_finished_one_is_resumed_to_itself(
    photos: Path, cache_dir: str, tmp_path: Path
) -> None:
    run(*search(photos, cache_dir, tmp_path / "a", *QUICK))
    packs = {p: p.stat().st_mtime_ns for p in Path(cache_dir, "packs").rglob("*") if p.is_file()}
    trials, bundle = (
        (tmp_path / "a" / "trials.csv").read_bytes(),
        Predictor.load(str(tmp_path / "a" / "bundle")).info.id,
    )
    assert packs
    run(*search(photos, cache_dir, tmp_path / "a", "--resume"))
    assert (tmp_path / "a" / "trials.csv").read_bytes() == trials
    assert Predictor.load(str(tmp_path / "a" / "bundle")).info.id == bundle
    run(*search(photos, cache_dir, tmp_path / "b", *QUICK))
    assert {p: p.stat().st_mtime_ns for p in Path(cache_dir, "packs").rglob("*") if p.is_file()} == packs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "/nowhere/frames"), r"/nowhere/frames"),
        (("--epochs", "-1"), r"epochs must be >= 0, got -1"),
        (("--learning-rate", "7"), r"learning_rate is 7.* in the first trial, outside"),
        (("--model", "resnet18", "--weights", "/nowhere.pth", "--dense-units", "128"), r"/nowhere\.pth: no such file"),
        (("--resume", "--out", "/nowhere/run"), r"no search to resume"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, cache_dir: str) -> None:
    printed = run("tune/search.py", "--cache-dir", cache_dir, *arguments, code=2)
    assert "Traceback" not in printed
    assert re.search(message, re.sub(r"[\s│]+", " ", printed))
