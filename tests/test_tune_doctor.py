"""The search doctor: the bird story, the search before it runs, its silence about the healthy, its words."""

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
from tests.tune_searches import healthy, rules, searched, story
from tune.doctor import examination
from tune.doctor.besttrial import at_bounds
from tune.doctor.facts import Facts, Finding, facts_of
from tune.settings import SearchConfig
from tune.space import Choice, Float, Space

# The bird story


def test_the_storys_search_is_seen_to_have_failed() -> None:
    found = rules(examination.after(story()))
    assert found["collapsed"].what == "19 of 20 trials ended at chance"
    assert found["collapsed"].severity == "warning"
    assert "0.10 on these 50 images" in found["collapsed"].evidence


def test_the_storys_scale_is_named() -> None:
    scale = rules(examination.before(story()))["scale"]
    assert "reverse-log" in scale.what
    assert "near 1" in scale.evidence
    # ln(1 - x) is drawn evenly: (ln 0.99 - ln 0.9) / (ln 0.999 - ln 0.9)
    assert "91% of the draws in 0.001-0.1 lie above 0.01" in scale.evidence


def test_the_storys_scale_is_not_made_to_explain_all() -> None:
    rate = rules(examination.after(story()))["learning-rate"]
    assert "does not explain all" in rate.what
    assert all(low in rate.evidence for low in ("0.0021", "0.0028", "0.0041"))


def test_the_story_is_told_while_it_runs() -> None:
    in_time = story().table.sort_values("trial")
    said = [rules(examination.after(replace(story(), table=in_time.iloc[:count]))) for count in range(21)]
    assert not any(said[:4])  # three trials at chance are no evidence
    assert said[5]["collapsed"].what == "5 of 5 trials ended at chance"
    assert "at-bound" in said[20]
    assert at_bounds(story()) == {"learning_rate": "lower", "dense_units": "lower"}


def test_the_storys_gap_is_no_accident_of_fifty_images() -> None:
    table = story().table.assign(last_training_accuracy=0.77)
    assert "(0.77) and not the others (0.34)" in rules(examination.after(replace(story(), table=table)))["gap"].what


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_base_is_no_advice_to_whom_has_one(frozen: bool) -> None:
    table = story().table.assign(last_training_accuracy=0.77)
    gap = rules(examination.after(replace(story(), table=table, frozen=frozen)))["gap"]
    assert ("frozen backbone" in gap.advice) != frozen
    assert gap.advice.startswith("--augment light or strong")


# Silence


def test_a_healthy_search_has_no_finding() -> None:
    assert examination.before(healthy()) == []
    assert examination.after(healthy()) == []


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert examination.before(Facts()) == []
    assert examination.after(Facts()) == []
    assert examination.after(replace(healthy(), table=pd.DataFrame(columns=["trial", "status", "error"]))) == []
    assert examination.after(replace(healthy(), table=pd.DataFrame({"validation_accuracy": [0.25] * 9}))) != []


def test_trials_that_still_run_or_were_pruned_at_once_are_not_judged() -> None:
    dead: dict[str, Any] = {"validation_accuracy": 0.25, "top_share": 1.0}
    assert examination.after(healthy(status="running", **dead)) == []
    assert examination.after(healthy(status="pruned", epochs_run=1, **dead)) == []
    assert "collapsed" in rules(examination.after(healthy(status="pruned", epochs_run=4, **dead)))


def test_one_trial_near_a_bound_is_an_accident() -> None:
    facts = healthy()
    facts.table.loc[0, "learning_rate"] = 0.0099
    assert at_bounds(facts) == {}


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
    found = rules(examination.before(searched(rate)))
    assert ("scale" in found) == bool(said)
    assert said in found["scale"].what if said else True


def test_rates_that_teach_nothing_are_known_by_optimiser_and_network() -> None:
    hot = searched(Float("learning_rate", 1.0, 100.0, "log"))
    assert "100% of the learning rates" in rules(examination.before(hot))["dead-region"].what
    assert "dead-region" not in rules(examination.before(replace(hot, model="mobilenet_v2", frozen=True)))
    assert "dead-region" not in rules(examination.before(searched(Float("learning_rate", 0.0001, 0.04, "log"))))
    assert hot.space is not None
    both = Space(
        (*hot.space.dimensions, Choice("optimizer", ("adam", "sgd"))), {**hot.space.defaults, "optimizer": "sgd"}
    )
    assert "dead-region" not in rules(examination.before(replace(hot, space=both)))


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
    found = rules(examination.before(replace(healthy(), **changed)))
    assert found[rule].severity == severity
    assert evidence in found[rule].evidence


# The table of rules, and its way to the terminal and into the report


def test_a_rule_is_known_by_one_name() -> None:
    names = [rule.name for rule in examination.RULES]
    assert len(names) == len(set(names))
    for rule in examination.RULES:
        finding = rule.check(Facts())
        assert finding is None


def test_findings_go_to_the_terminal_and_into_json() -> None:
    findings = [Finding("a", "what", "evidence", "advice", "note"), *examination.after(story())]
    told = examination.lines(findings)
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
    facts = facts_of(config, load_collection(config.data))
    assert facts.blank_share == pytest.approx(24 / 84)
    assert (facts.left_out, facts.listed) == ((("unreadable", 12),), 96)
    assert (facts.planned, facts.optimizer, facts.patience, facts.model) == (7, "sgd", 4, "cnn")
    assert sum(facts.train_counts) + facts.n < 84
    assert {"blank-images", "unused-images"} <= set(rules(examination.before(facts)))
