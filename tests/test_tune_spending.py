"""The meter beside a search: what the next epoch is expected to take, and what a full disk or a torn file does."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import UserError
from tune.budget import Budget, Meter
from tune.outputs import RunFolder
from tune.prices import load_prices
from tune.spending import Spending, recall


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def trial(number: int) -> Any:
    return SimpleNamespace(config={"trial": number}, status="RUNNING")


def epoch(spending: Spending, number: int, seconds: float) -> None:
    one = trial(number)
    spending.on_trial_result(0, [one], one, {"time_this_iter_s": seconds, "epoch_cpu_seconds": 2.0})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spending(tmp_path: Path, clock: Clock) -> Spending:
    made = Spending()
    made.begin(
        RunFolder(str(tmp_path), str(tmp_path)),
        Budget(budget_minutes=10),
        Meter(load_prices(), list, clock=clock),
    )
    return made


def test_an_epoch_that_would_overrun_is_not_begun_nor_the_first_of_the_next_trial(
    spending: Spending, clock: Clock
) -> None:
    clock.now += 500
    epoch(spending, 0, 90.0)
    assert spending.refusal() == ""
    epoch(spending, 0, 110.0)
    assert "would not end within the 10 minutes" in spending.refusal()
    spending.on_trial_complete(0, [], trial(0))
    assert "would not end within the 10 minutes" in spending.refusal()  # the next trial's epochs are no shorter


def test_the_longest_of_the_running_epochs_counts_and_a_dead_trial_s_does_not(spending: Spending, clock: Clock) -> None:
    clock.now += 500
    epoch(spending, 0, 300.0)
    epoch(spending, 1, 5.0)
    assert spending.refusal() != ""
    spending.on_trial_error(0, [], trial(0))
    assert spending.refusal() == ""


def test_what_was_spent_is_kept_and_a_torn_file_is_said(spending: Spending, clock: Clock, tmp_path: Path) -> None:
    epoch(spending, 0, 5.0)
    clock.now += 60
    spending.on_experiment_end([])
    again = Meter(load_prices(), list, clock=clock)
    recall(RunFolder(str(tmp_path), str(tmp_path)), again)
    assert again.summary() == {"usd": 0.0, "minutes": 1.0, "cpu_seconds": 2.0}
    kept = tmp_path / "spending.json"
    for torn in (kept.read_text()[:20], "[]", json.dumps({"usd": 1})):
        kept.write_text(torn)
        with pytest.raises(UserError, match=r"spending\.json is damaged"):
            recall(RunFolder(str(tmp_path), str(tmp_path)), again)


def test_a_disk_that_is_full_for_a_moment_does_not_end_the_search(
    spending: Spending, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(RunFolder, "write_json", full)
    spending.on_experiment_end([])
    assert "warning: no room" in capsys.readouterr().err
