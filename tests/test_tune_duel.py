"""A whole duel of optimisers on Ray: both phases, what ends it early, and who fails."""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data.collection import DataConfig
from data.errors import UserError
from models.predictor import Predictor
from models.training import TrainConfig
from tests.duels import drawn
from tune import beginning, runs
from tune.budget import Meter
from tune.doctor.facts import Facts
from tune.duel import dueling
from tune.duel.duelists import CONTESTANT, SEEDS, parse_duel
from tune.duel.scores import over_seeds
from tune.duel.words import duel_lines, words
from tune.outputs import RunFolder
from tune.prices import PriceTable
from tune.searching import Finished, run_search
from tune.session import Session
from tune.settings import SearchConfig, from_dict
from tune.trial import Job

ADAM, SGD, DECAYED = parse_duel("adam,sgd")


@pytest.fixture
def config(config: SearchConfig) -> SearchConfig:
    train = TrainConfig(epochs=2, batch_size=16, momentum=0.1)
    return replace(config, train=train, duel="adam,sgd", trials=2, max_concurrent=2)


@pytest.mark.ray
def test_a_duel_that_ended_between_its_phases_goes_on_to_a_verdict(
    ray_cluster: None, config: SearchConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(config.out)
    with monkeypatch.context() as patched:
        patched.setattr(dueling, "run_search", lambda *given: replace(run_search(*given), interrupted="Ctrl-C"))
        assert runs.search(config) == 0
    printed = capsys.readouterr().out
    assert "verdict     cannot tell yet: the duel ended before all had trained (Ctrl-C)" in printed
    assert f"ended       Ctrl-C; go on with  uv run tune/search.py --resume --out {out}" in printed
    assert Predictor.load(str(out / "bundle")).info.classes == ("crab", "sponge")
    before = pd.read_csv(out / "trials.csv")
    assert list(before["phase"]) == ["rates"] * 6
    assert "duel        sgd-keras-time: not yet through its learning rates" in printed

    # The command line of a resume names the folder and nothing else.
    assert runs.search(SearchConfig(data=DataConfig(cache_dir=config.data.cache_dir), out=config.out, resume=True)) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv(out / "trials.csv")
    pd.testing.assert_frame_equal(
        table[table["phase"] == "rates"].reset_index()[before.columns], before, check_dtype=False
    )  # no rate was tried again
    check_fair(table)

    told = json.loads((out / "duel.json").read_text())
    report = json.loads((out / "report.json").read_text())
    assert report["duel"] == told
    assert [pair["first"] + " " + pair["second"] for pair in told["pairs"]] == [
        "adam sgd",
        "adam sgd-keras-time",
        "sgd sgd-keras-time",
    ]
    for line in duel_lines(told):
        assert line in printed
    check_numbers(table, told)
    # The bundle is the network of the trial that is named, and the answers compared are the predictor's own.
    chosen = told["bundled"]
    row = table[(table["phase"] == "seeds") & (table["trial"] == chosen["trial"])].iloc[0]
    assert report["validation"]["accuracy"] == pytest.approx(row["validation_accuracy"])
    assert report["test"]["accuracy"] == pytest.approx(row["test_accuracy"])


def check_fair(table: pd.DataFrame) -> None:
    """As many trials for each, the same seeds, one learning rate in the second phase: the best of the first."""
    assert set(table["status"]) == {"finished"}
    assert set(table["epochs_run"]) == {2}
    for name in ("adam", "sgd", "sgd-keras-time"):
        mine = table[table[CONTESTANT] == name]
        rates, seeds = mine[mine["phase"] == "rates"], mine[mine["phase"] == "seeds"]
        assert list(rates["seed"]) == [0, 0]
        assert list(seeds["seed"]) == [1, 2, 3, 4, 5]
        best = rates.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True]).iloc[0]
        assert list(seeds["learning_rate"]) == pytest.approx([best["learning_rate"]] * SEEDS)
        assert rates["test_accuracy"].isna().all()


def check_numbers(table: pd.DataFrame, told: dict[str, Any]) -> None:
    """duel.json says what trials.csv says."""
    seeds = table[table["phase"] == "seeds"].pivot(index="seed", columns=CONTESTANT, values="test_accuracy")
    for each in told["contestants"]:
        assert each["test_accuracy"] == pytest.approx(list(seeds[each["name"]]))
        mine = table[table[CONTESTANT] == each["name"]]
        assert each["cost"] == {
            "trials": 7,
            "most_epochs": 2,
            "epochs": 14,
            "cpu_seconds": pytest.approx(mine["cpu_seconds"].sum()),
        }
    for pair in told["pairs"]:
        differences = seeds[pair["first"]] - seeds[pair["second"]]
        assert pair["by_seed"] == pytest.approx(list(differences))
        assert pair["seeds_interval"] == pytest.approx(over_seeds(differences.to_numpy()))


@dataclass(frozen=True)
class Diverging(Job):
    """A job that loses its numbers with constant sgd always, and with time decay from one seed."""

    def with_values(self, values: dict[str, Any]) -> Job:
        good = super().with_values(values)
        if values[CONTESTANT] == "sgd" or (values[CONTESTANT] == "sgd-keras-time" and values["seed"] == 3):
            return replace(good, train=replace(good.train, learning_rate=1e30))
        return good


@pytest.mark.ray
def test_trials_that_diverge_lose_the_duel_and_do_not_end_it(
    ray_cluster: None, config: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "Job", Diverging)
    assert runs.search(replace(config, trials=1)) == 0
    told = json.loads((Path(config.out) / "duel.json").read_text())
    adam, sgd, decayed = told["contestants"]
    assert (adam["failure"], decayed["failure"], sgd["learning_rate"]) == ("", "", None)
    assert "no learning rate of sgd gave a network; the commonest error: the loss is no finite" in sgd["failure"]
    assert words(told["pairs"][0], told["images"]).startswith("adam is better than sgd: no learning rate of sgd gave")
    # The seed that gave no network counts as naming one class for every image; both are equally common here.
    assert (decayed["failed_seeds"], decayed["test_accuracy"][2]) == (1, 0.5)
    assert decayed["validation_accuracy"][2] is None
    assert told["bundled"][CONTESTANT] in ("adam", "sgd-keras-time")
    assert any("counts as always naming" in line for line in duel_lines(told))
    told["contestants"][0]["test_accuracy"] = [told["majority_rate"]] * SEEDS
    assert any(re.search("no better on the mean than always naming crab: adam(,|$)", line) for line in duel_lines(told))


def test_a_duel_without_any_network_ends_with_the_reason(
    config: SearchConfig, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_fail(_config: Any, plan: Any, *_: Any) -> Finished:
        rows = drawn(plan.space, plan.points, plan.trials)
        left = {"status": "failed", "error": "too high", "validation_accuracy": np.nan, "validation_loss": np.nan}
        return Finished(pd.DataFrame([{**row, **left} for row in rows]), {}, plan.space, "")

    monkeypatch.setattr(dueling, "run_search", all_fail)
    monkeypatch.setattr(dueling, "meter_of", lambda *_: Meter(PriceTable(()), list))
    run = RunFolder(config.out, config.out)
    with pytest.raises(UserError, match=r"no trial of the rates phase has a score; .*: too high \(6 of"):
        dueling.Duel(config, job, run, Session("", 2, 0)).fight(Facts())
    assert len(pd.read_csv(run.path("trials.csv"))) == 6


def test_the_second_phase_counts_on_from_what_the_first_cost(
    config: SearchConfig, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its trials, whose numbers begin at 0 again, do not bear what those of the first cost."""
    meters: list[Meter] = []

    def spend(_config: Any, plan: Any, _job: Any, _run: Any, _session: Any, meter: Meter, _watch: Any) -> Finished:
        assert meter.cost_of(0) == 0
        meter.restore({**meter.state(), "usd": meter.usd + 2, "trials": {"0": 2.0}})
        meters.append(meter)
        scores = {"status": "failed", "error": "", "validation_accuracy": 0.5, "validation_loss": 0.7}
        if plan.trials == 6:
            scores["status"] = "finished"
        table = pd.DataFrame([{**row, **scores} for row in drawn(plan.space, plan.points, plan.trials)])
        return Finished(table, {}, plan.space, "")

    monkeypatch.setattr(dueling, "run_search", spend)
    monkeypatch.setattr(dueling, "meter_of", lambda *_: Meter(PriceTable(()), list))
    with pytest.raises(UserError, match="no trial of the seeds phase has a score"):
        dueling.Duel(config, job, RunFolder(config.out, config.out), Session("", 2, 0)).fight(Facts())
    assert [meter.usd for meter in meters] == [2, 4]


def test_settings_of_a_duel_survive_json() -> None:
    """A resume reads them back."""
    config = SearchConfig(duel="adam,sgd", trials=3)
    assert from_dict(SearchConfig, json.loads(json.dumps(asdict(config)))) == config
    assert (config.trials_each, SearchConfig(duel="adam,sgd").trials_each) == (3, 8)
