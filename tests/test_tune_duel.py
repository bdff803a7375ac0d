"""The duel of optimisers: who meets, on what terms, and what is said of the end."""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch

from data.collection import DataConfig, load_collection
from data.errors import UserError
from models.metrics import paired_difference
from models.predictor import Predictor
from models.training import TrainConfig
from tune import beginning, duel, runs
from tune.budget import Budget, Meter
from tune.doctor import Facts
from tune.duelists import CONTESTANT, SEEDS, Rates, Seeds, parse_duel
from tune.duelreport import duel_lines, words
from tune.duelscores import Pair, all_pairs, compare, over_images, over_seeds, winner
from tune.outputs import RunFolder
from tune.prices import PriceTable
from tune.searching import Finished, run_search
from tune.session import Session
from tune.settings import SearchConfig, from_dict
from tune.space import AT_BOUND, NUMBER
from tune.trial import Job

ADAM, SGD, DECAYED = parse_duel("adam,sgd")


# Who meets


def test_sgd_meets_twice_with_and_without_time_decay() -> None:
    assert parse_duel("") == ()
    assert [(c.name, c.optimizer, c.schedule) for c in parse_duel(" AdamW, sgd")] == [
        ("adamw", "adamw", "constant"),
        ("sgd", "sgd", "constant"),
        ("sgd-keras-time", "sgd", "keras-time"),
    ]


@pytest.mark.parametrize("text", ["adam", "sgd", "adam,adam", "adam,lion", "adam,", ","])
def test_other_duels_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duel must name two or more of adam, adamw, sgd, each once, got"):
        SearchConfig(duel=text)


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"also": ("optimizer",), "widen": True}, "--also, --widen"),
        ({"objective": "accuracy,size"}, "--objective"),
        ({"space": "story"}, "--space"),
        ({"warm_start": "runs/a"}, "--warm-start"),
        ({"train": TrainConfig(optimizer="sgd", learning_rate=0.01)}, "--optimizer, --learning-rate"),
        ({"train": TrainConfig(schedule="keras-time")}, "--schedule"),
    ],
)
def test_what_makes_no_sense_beside_a_duel_is_refused(settings: dict[str, Any], flags: str) -> None:
    with pytest.raises(ValueError, match=f"leave out {flags}, or leave out --duel"):
        SearchConfig(duel="adam,sgd", **settings)


def test_a_resumed_duel_takes_a_new_budget_and_no_pick() -> None:
    begun = SearchConfig(duel="adam,sgd")
    longer = SearchConfig(out="/x", resume=True, budget=Budget(budget_minutes=3))
    assert begun.resumed_by(longer).budget.budget_minutes == 3
    with pytest.raises(UserError, match="leave out --pick"):
        begun.resumed_by(SearchConfig(out="/x", resume=True, pick="accuracy>0.5"))


# On equal terms


def test_all_try_as_many_rates_at_the_same_places_of_bounds_of_one_width() -> None:
    contestants = (*parse_duel("adam,adamw"), SGD, DECAYED)
    assert {round(c.high / c.low) for c in contestants} == {10_000}
    places = [[round(c.dimension.position(rate), 6) for rate in c.rates(8)] for c in contestants]
    assert places == [[0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375]] * 4
    assert min(places[0]) > AT_BOUND


def drawn(space: Any, points: tuple[dict[str, Any], ...], trials: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in points:
        study.enqueue_trial(point)
    return [space(study.ask()) for _ in range(trials)]


def test_the_first_phase_gives_each_contestant_every_third_trial_with_one_seed() -> None:
    space = Rates.of((ADAM, SGD, DECAYED), seed=7)
    values = drawn(space, space.points(10), 30)  # two trials more each than there are points
    assert [v[NUMBER] for v in values] == list(range(30))
    assert {v["seed"] for v in values} == {7}
    for place, contestant in enumerate((ADAM, SGD, DECAYED)):
        mine = values[place::3]
        assert {(v[CONTESTANT], v["optimizer"], v["schedule"]) for v in mine} == {
            (contestant.name, contestant.optimizer, contestant.schedule)
        }
        rates = [v["learning_rate"] for v in mine]
        assert rates[:8] == pytest.approx(contestant.rates(8))
        assert len(set(rates)) == 10
        assert all(contestant.low <= rate <= contestant.high for rate in rates)


def test_the_second_phase_gives_each_contestant_every_seed_with_its_own_rate() -> None:
    space = Seeds.of({ADAM: 0.002, DECAYED: 0.5}, (1, 2, 3, 4, 5))
    values = drawn(space, space.points(), 10)
    assert [(v[CONTESTANT], v["seed"], v["learning_rate"]) for v in values] == [
        (name, seed, rate) for seed in range(1, 6) for name, rate in (("adam", 0.002), ("sgd-keras-time", 0.5))
    ]


@pytest.fixture
def job(photos: Path, cache_dir: str) -> Job:
    data = DataConfig(data=str(photos / "labels.csv"), image_size=16, cache_dir=cache_dir)
    return Job(SearchConfig().model, TrainConfig(epochs=1, batch_size=16), load_collection(data))


def test_contestants_start_from_the_same_weights_to_the_bit(job: Job) -> None:
    def first_weights(contestant: Any, seed: int) -> dict[str, torch.Tensor]:
        run = job.with_values(contestant.values(contestant.rates(1)[0], seed)).start()
        return {name: value.clone() for name, value in run._learner.trained.state_dict().items()}

    for seed in (1, 2):
        adam = first_weights(ADAM, seed)
        for other in parse_duel("adamw,sgd"):
            theirs = first_weights(other, seed)
            assert adam.keys() == theirs.keys()
            assert all(torch.equal(adam[name], theirs[name]) for name in adam)
    assert not all(torch.equal(adam[name], value) for name, value in first_weights(ADAM, 1).items())


# What is said of the end


def test_the_interval_over_seeds_is_students() -> None:
    """Mean 0.3, s = sqrt(0.025), half width 2.776 s / sqrt(5) = 0.19629."""
    assert over_seeds(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx((0.10371, 0.49629), abs=1e-5)
    assert over_seeds(np.full(5, 0.25)) == (0.25, 0.25)
    with pytest.raises(ValueError, match="that of 5 differences, got 4"):
        over_seeds(np.zeros(4))


@pytest.mark.parametrize(("won", "lost", "n"), [(0, 0, 5), (7, 2, 30), (3, 3, 6), (40, 0, 40)])
def test_the_interval_over_images_is_that_of_paired_answers(won: int, lost: int, n: int) -> None:
    """With answers that are the same from every seed; what differs from seed to seed makes it narrower, not wider."""
    differences = np.zeros(n)
    differences[:won], differences[won : won + lost] = 1, -1
    assert over_images(differences) == pytest.approx(paired_difference(won, lost, n)[1:])


def test_seeds_that_disagree_on_an_image_count_as_one_image() -> None:
    """d = 0.5 on both of two images: sum 1, sum of squares 0.5 + 1, n + 2 = 4."""
    half = 1.96 * np.sqrt(1.5 - 1 / 4) / 4
    assert over_images(np.array([0.5, 0.5])) == pytest.approx((0.25 - half, 0.25 + half))


def answers(right: int, n: int = 100, *, jitter: tuple[int, ...] = (0, 0, 0, 0, 0)) -> Any:
    """For each seed, the first `right` (and as many more as the jitter says) of n images are answered rightly."""
    return np.stack([np.arange(n) < right + extra for extra in jitter])


def test_one_is_better_only_where_seeds_and_images_agree() -> None:
    better = compare("adam", answers(80, jitter=(0, 1, 2, 1, 0)), "sgd", answers(60))
    assert better.verdict == "first"
    assert better.by_seed == pytest.approx((0.20, 0.21, 0.22, 0.21, 0.20))
    assert better.difference == pytest.approx(0.208)
    assert compare("sgd", answers(60), "adam", answers(80)).verdict == "second"
    assert compare("adam", answers(60), "sgd", answers(60)).verdict == "cannot tell"
    # Three images in a hundred from every seed: the seeds are sure, the images are not.
    few = compare("adam", answers(63), "sgd", answers(60))
    assert few.seeds_interval is not None
    assert few.images_interval is not None
    assert few.seeds_interval[0] > 0 > few.images_interval[0]
    assert few.verdict == "cannot tell"
    # Twelve in a hundred on the mean, but one seed of five says the opposite.
    unsteady = compare("adam", answers(60, jitter=(30, 30, 30, -30, 0)), "sgd", answers(60))
    assert unsteady.images_interval is not None
    assert unsteady.images_interval[0] > 0
    assert unsteady.verdict == "cannot tell"


def test_the_verdict_in_words() -> None:
    adam, sgd = answers(80, jitter=(0, 1, 2, 1, 0)), answers(60)
    won = words(compare("adam", adam, "sgd", sgd).as_dict(), 100)
    assert won.startswith(
        "adam is better than sgd by 0.208 test accuracy (95 % interval +0.198 to +0.218 over the 5 se"
    )
    assert won.endswith("over the 100 test images)")
    lost = words(compare("sgd", sgd, "adam", adam).as_dict(), 100)
    assert lost == won
    equal = words(compare("adam", sgd, "sgd", sgd).as_dict(), 100)
    assert equal.startswith(
        "cannot tell adam from sgd: adam minus sgd is +0.000 test accuracy (95 % interval +0.000 to"
    )


def test_who_could_not_be_trained_loses_with_the_reason() -> None:
    pairs = all_pairs({"sgd": answers(60)}, {"adam": "it died", "sgd": "", "adamw": "it died too"})
    assert [words(pair.as_dict(), 100) for pair in pairs] == [
        "sgd is better than adam: it died",
        "cannot tell adam from adamw: neither could be trained: it died",
        "sgd is better than adamw: it died too",
    ]
    assert winner(pairs) == "sgd"


def test_a_winner_is_better_than_all_others() -> None:
    assert winner([Pair("a", "b", "first"), Pair("a", "c", "second"), Pair("b", "c", "second")]) == "c"
    assert winner([Pair("a", "b", "first"), Pair("a", "c", "cannot tell"), Pair("b", "c", "second")]) == ""
    assert winner([]) == ""


# The whole duel on Ray


@pytest.fixture
def config(photos: Path, cache_dir: str, tmp_path: Path) -> SearchConfig:
    return SearchConfig(
        data=DataConfig(data=str(photos / "labels.csv"), image_size=16, cache_dir=cache_dir),
        train=TrainConfig(epochs=2, batch_size=16, momentum=0.1),
        duel="adam,sgd",
        trials=2,
        out=str(tmp_path / "run"),
        max_concurrent=2,
    )


@pytest.mark.ray
def test_a_duel_that_ended_between_its_phases_goes_on_to_a_verdict(
    ray_cluster: None, config: SearchConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(config.out)
    with monkeypatch.context() as patched:
        patched.setattr(duel, "run_search", lambda *given: replace(run_search(*given), interrupted="Ctrl-C"))
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

    monkeypatch.setattr(duel, "run_search", all_fail)
    monkeypatch.setattr(duel, "meter_of", lambda *_: Meter(PriceTable(()), list))
    run = RunFolder(config.out, config.out)
    with pytest.raises(UserError, match=r"no trial of the rates phase has a score; .*: too high \(6 of"):
        duel.Duel(config, job, run, Session("", 2, 0)).fight(Facts())
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

    monkeypatch.setattr(duel, "run_search", spend)
    monkeypatch.setattr(duel, "meter_of", lambda *_: Meter(PriceTable(()), list))
    with pytest.raises(UserError, match="no trial of the seeds phase has a score"):
        duel.Duel(config, job, RunFolder(config.out, config.out), Session("", 2, 0)).fight(Facts())
    assert [meter.usd for meter in meters] == [2, 4]


def test_settings_of_a_duel_survive_json() -> None:
    """A resume reads them back."""
    config = SearchConfig(duel="adam,sgd", trials=3)
    assert from_dict(SearchConfig, json.loads(json.dumps(asdict(config)))) == config
    assert (config.trials_each, SearchConfig(duel="adam,sgd").trials_each) == (3, 8)
