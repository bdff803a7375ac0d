"""The search doctor: what it says of searches that went wrong, and its silence about those that did not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data.collection import DataConfig, load_collection
from data.images import encode_png
from models.training import TrainConfig
from tune import doctor
from tune.doctor import Facts
from tune.settings import SearchConfig
from tune.space import Choice, Float, Int, Space, make_space

DEFAULTS = {"learning_rate": 0.001, "epochs": 10, "dense_units": 32}


@pytest.fixture
def story() -> Facts:
    """The bird story's own 20 trials, as its table has them: 50 validation images, 10 classes, no status."""
    return Facts(
        table=pd.read_csv(Path(__file__).parent / "story-trials.csv"),
        space=make_space("story", DEFAULTS, backbone=False),
        planned=20,
        patience=3,
        classes=tuple("ABCDEFGHIJ"),
        train_counts=(159,) * 10,
        validation_counts=(5,) * 10,
    )


def healthy(scores: list[float] | None = None, **columns: Any) -> Facts:
    """Twelve trials as a healthy search over four classes and 400 validation images leaves them; columns replaced."""
    random = np.random.default_rng(5)
    rates = np.exp(random.uniform(np.log(1e-4), np.log(1e-2), 12))
    rates[:3] = 0.001, 0.0013, 0.0008
    table = pd.DataFrame(
        {
            "trial": [3, *(n for n in range(12) if n != 3)],
            "learning_rate": rates,
            "epochs": 10,
            "dense_units": random.integers(16, 64, 12),
            "status": "finished",
            "epochs_run": 10,
            "best_epoch": 7,
            "validation_accuracy": np.linspace(0.82, 0.55, 12) if scores is None else scores,
            "validation_loss": 0.6,
            "last_training_accuracy": 0.9,
            "last_validation_loss": 0.7,
            "top_share": 0.31,
            "dead_units": 0.3,
            "error": np.nan,
        }
    )
    return Facts(
        table=table.assign(**columns),
        space=make_space("default", DEFAULTS, backbone=False),
        planned=12,
        patience=5,
        classes=("ant", "bee", "cat", "dog"),
        train_counts=(500, 450, 420, 400),
        validation_counts=(110, 100, 100, 90),
        listed=2300,
    )


def rules(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.rule: finding for finding in findings}


def searched(rate: Float, **others: Any) -> Facts:
    space = Space((rate, Int("epochs", 3, 10)), {"learning_rate": rate.high, "epochs": 10})
    return replace(healthy(), space=space, **others)


# The bird story


def test_the_storys_search_is_seen_to_have_failed(story: Facts) -> None:
    found = rules(doctor.after(story))
    assert found["collapsed"].what == "19 of 20 trials ended at chance"
    assert found["collapsed"].severity == "warning"
    assert "0.10 on these 50 images" in found["collapsed"].evidence


def test_the_storys_scale_is_named(story: Facts) -> None:
    scale = rules(doctor.before(story))["scale"]
    assert "reverse-log" in scale.what
    assert "near 1" in scale.evidence
    # ln(1 - x) is drawn evenly: (ln 0.99 - ln 0.9) / (ln 0.999 - ln 0.9)
    assert "91% of the draws in 0.001-0.1 lie above 0.01" in scale.evidence


def test_the_storys_scale_is_not_made_to_explain_all(story: Facts) -> None:
    rate = rules(doctor.after(story))["learning-rate"]
    assert "does not explain all" in rate.what
    assert all(low in rate.evidence for low in ("0.0021", "0.0028", "0.0041"))


def test_the_story_is_told_while_it_runs(story: Facts) -> None:
    in_time = story.table.sort_values("trial")
    said = [rules(doctor.after(replace(story, table=in_time.iloc[:count]))) for count in range(21)]
    assert not any(said[:4])  # three trials at chance are no evidence
    assert said[5]["collapsed"].what == "5 of 5 trials ended at chance"
    assert "at-bound" in said[20]
    assert doctor.at_bounds(story) == {"learning_rate": "lower", "dense_units": "lower"}


# Silence


def test_a_healthy_search_has_no_finding() -> None:
    assert doctor.before(healthy()) == []
    assert doctor.after(healthy()) == []


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert doctor.before(Facts()) == []
    assert doctor.after(Facts()) == []
    assert doctor.after(replace(healthy(), table=pd.DataFrame(columns=["trial", "status", "error"]))) == []
    assert doctor.after(replace(healthy(), table=pd.DataFrame({"validation_accuracy": [0.25] * 9}))) != []


def test_trials_that_still_run_or_were_pruned_at_once_are_not_judged() -> None:
    dead = {"validation_accuracy": 0.25, "top_share": 1.0}
    assert doctor.after(healthy(status="running", **dead)) == []
    assert doctor.after(healthy(status="pruned", epochs_run=1, **dead)) == []
    assert "collapsed" in rules(doctor.after(healthy(status="pruned", epochs_run=4, **dead)))


def test_one_trial_near_a_bound_is_an_accident() -> None:
    facts = healthy()
    facts.table.loc[0, "learning_rate"] = 0.0099
    assert doctor.at_bounds(facts) == {}


# Before


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (Float("learning_rate", 0.001, 0.02), "linear"),
        (Float("learning_rate", 0.0, 0.02), "linear"),
        (Float("learning_rate", 0.001, 0.02, "reverse-log"), "reverse-log"),
        (Float("learning_rate", 0.001, 0.02, "log"), ""),
        (Float("learning_rate", 0.001, 0.005), ""),
    ],
)
def test_a_rate_over_orders_of_magnitude_wants_a_log_scale(rate: Float, said: str) -> None:
    found = rules(doctor.before(searched(rate)))
    assert ("scale" in found) == bool(said)
    assert said in found["scale"].what if said else True


def test_rates_that_teach_nothing_are_known_by_optimiser_and_network() -> None:
    hot = searched(Float("learning_rate", 1.0, 100.0, "log"))
    assert "100% of the learning rates" in rules(doctor.before(hot))["dead-region"].what
    assert "dead-region" not in rules(doctor.before(replace(hot, model="mobilenet_v2", frozen=True)))
    assert "dead-region" not in rules(doctor.before(searched(Float("learning_rate", 0.0001, 0.04, "log"))))
    assert hot.space is not None
    both = Space(
        (*hot.space.dimensions, Choice("optimizer", ("adam", "sgd"))), {**hot.space.defaults, "optimizer": "sgd"}
    )
    assert "dead-region" not in rules(doctor.before(replace(hot, space=both)))


@pytest.mark.parametrize(
    ("changed", "rule", "severity", "evidence"),
    [
        ({"planned": 5}, "few-trials", "note", "drawn at random"),
        ({"planned": 2}, "few-trials", "warning", "drawn at random"),
        ({"patience": 9}, "patience", "note", "waits 9 epochs"),
        ({"validation_counts": (2, 3, 3, 3)}, "small-validation", "warning", "plus or minus 0.25"),
        ({"validation_counts": (110, 100, 100, 2)}, "rare-class", "note", "dog 2"),
        ({"validation_counts": (110, 100, 100, 0)}, "rare-class", "warning", "dog 0"),
        ({"validation_counts": (990, 3, 3, 4)}, "one-class", "warning", "always naming ant is right for 99.0%"),
        ({"blank_share": 0.4}, "blank-images", "warning", "nothing to learn"),
        ({"left_out": (("unreadable", 150),)}, "unused-images", "warning", "150 unreadable"),
    ],
)
def test_what_is_wrong_before_a_trial_runs(changed: dict[str, Any], rule: str, severity: str, evidence: str) -> None:
    found = rules(doctor.before(replace(healthy(), **changed)))
    assert found[rule].severity == severity
    assert evidence in found[rule].evidence


# After


def test_trials_that_name_one_class_are_counted() -> None:
    scores = [0.8] * 2 + [0.275] * 9 + [0.26]
    found = rules(doctor.after(healthy(scores, top_share=[0.3] * 2 + [1.0] * 9 + [0.4])))
    assert found["collapsed"].what == "10 of 12 trials ended at chance"


def test_a_weak_trial_is_not_a_collapsed_one() -> None:
    """Its interval reaches down to the majority rate, but it names several classes and is above it."""
    assert "collapsed" not in rules(doctor.after(healthy([0.8] + [0.31] * 11)))
    assert "collapsed" in rules(doctor.after(healthy([0.8] + [0.31] * 11, top_share=np.nan)))


def test_a_network_that_died_after_its_best_epoch_has_a_good_score() -> None:
    assert doctor.after(healthy(top_share=1.0)) == []


def test_a_rate_that_parts_the_dead_from_the_living_is_named() -> None:
    rates = np.geomspace(0.0005, 0.01, 12)
    facts = healthy([0.8, 0.79, 0.78, 0.77] + [0.25] * 8, learning_rate=rates)
    found = rules(doctor.after(facts))["learning-rate"]
    assert "decided which trials learned" in found.what
    assert f"search below {rates[4]:.2g}" == found.advice


def test_rates_that_all_lie_in_the_dead_region_are_explained_by_it() -> None:
    found = rules(doctor.after(healthy([0.25] * 12, learning_rate=np.geomspace(1, 90, 12))))["learning-rate"]
    assert "known to teach this network nothing" in found.what


@pytest.mark.parametrize(
    ("changed", "rule", "evidence"),
    [
        ({"scores": [0.31] + [0.28] * 11, "last_training_accuracy": 0.55}, "nothing-learned", "a trial reached 0.55"),
        ({"dead_units": [0.2] + [0.97] * 11}, "dead-relus", "97% or more"),
        ({"last_training_accuracy": 0.98, "scores": np.linspace(0.6, 0.5, 12)}, "gap", "at most 0.65"),
        ({"learning_rate": [0.0001, 0.00012, 0.00011] + [0.001] * 9}, "at-bound", "0.0001 at its lower bound"),
        ({"trial": range(12)}, "defaults", "the defaults reached 0.820, the best of 11 others 0.795"),
        ({"best_epoch": 10}, "still-learning", "12 of the 12 trials with 10 epochs or more"),
    ],
)
def test_what_the_trials_say_together(changed: dict[str, Any], rule: str, evidence: str) -> None:
    found = rules(doctor.after(healthy(**changed)))
    assert list(found) == [rule]
    assert evidence in found[rule].evidence


def test_the_storys_gap_is_no_accident_of_fifty_images(story: Facts) -> None:
    table = story.table.assign(last_training_accuracy=0.77)
    assert "(0.77) and not the others (0.34)" in rules(doctor.after(replace(story, table=table)))["gap"].what


def test_few_images_cannot_choose() -> None:
    few = {"validation_counts": (7, 6, 6, 6)}
    found = rules(doctor.after(replace(healthy(list(np.linspace(0.64, 0.52, 12))), **few)))
    assert "0.640 against 0.629 for the second and 0.520 for the last" in found["indistinguishable"].evidence
    assert "indistinguishable" not in rules(doctor.after(healthy(list(np.linspace(0.64, 0.60, 12)))))


def test_failed_trials_are_read_for_what_they_have_in_common() -> None:
    lost = [f"the loss is no finite number at epoch {n}, batch 3, learning rate {n}e+30" for n in range(1, 9)]
    facts = healthy(status=["finished"] * 4 + ["failed"] * 8, error=[np.nan] * 4 + lost)
    found = rules(doctor.after(facts))
    assert found["diverged"].what == "the loss of 8 of 12 trials left the numbers"
    assert found["same-error"].what == "8 of 12 trials failed in the same way"
    assert found["same-error"].evidence == lost[0]
    one = healthy(status=["finished"] * 11 + ["failed"], error=[np.nan] * 11 + lost[:1])
    assert doctor.after(one) == []


# The table of rules, and its way to the terminal and into the report


def test_a_rule_is_known_by_one_name() -> None:
    names = [rule.name for rule in doctor.RULES]
    assert len(names) == len(set(names))
    for rule in doctor.RULES:
        finding = rule.check(Facts())
        assert finding is None


def test_findings_go_to_the_terminal_and_into_json(story: Facts) -> None:
    findings = [doctor.Finding("a", "what", "evidence", "advice", "note"), *doctor.after(story)]
    told = doctor.lines(findings)
    assert told[0].startswith("warning     19 of 20 trials ended at chance: ")
    assert told[-2:] == ["note        what: evidence", "            -> advice"]
    assert json.loads(json.dumps([f.as_dict() for f in findings]))[0] == {
        "rule": "a",
        "what": "what",
        "evidence": "evidence",
        "advice": "advice",
        "severity": "note",
    }


def test_facts_are_read_from_the_images(photos: Path, cache_dir: str, tmp_path: Path) -> None:
    """A quarter of the pictures flat, an eighth float with NaN pixels, which have no agreed brightness."""
    from PIL import Image

    table = pd.read_csv(photos / "labels.csv")
    table["path"] = [str(photos / path) for path in table["path"]]
    for number in range(36):
        path = tmp_path / f"{number}.{'png' if number < 24 else 'tif'}"
        if number < 24:
            path.write_bytes(encode_png(np.full((20, 20, 3), 7 * number, np.uint8)))
        else:
            Image.fromarray(np.full((20, 20), np.nan, np.float32) + np.float32(number)).save(path)
        table.loc[number * 2, "path"] = str(path)
    # Files of NaN alone would all be the same file.
    for number in range(24, 36):
        Path(tmp_path / f"{number}.tif").write_bytes((tmp_path / f"{number}.tif").read_bytes() + bytes([number]))
    table.to_csv(tmp_path / "labels.csv", index=False)
    config = SearchConfig(
        data=DataConfig(data=str(tmp_path / "labels.csv"), image_size=16, cache_dir=cache_dir),
        train=TrainConfig(optimizer="sgd", patience=4),
        trials=7,
    )
    facts = doctor.facts_of(config, load_collection(config.data))
    assert facts.blank_share == pytest.approx(24 / 84)
    assert (facts.left_out, facts.listed) == ((("unreadable", 12),), 96)
    assert (facts.planned, facts.optimizer, facts.patience, facts.model) == (7, "sgd", 4, "cnn")
    assert sum(facts.train_counts) + facts.n < 84
    assert {"blank-images", "unused-images"} <= set(rules(doctor.before(facts)))
