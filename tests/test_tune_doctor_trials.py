"""The search doctor's words on trials, each from a healthy table that has one thing wrong with it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tune_searches import healthy, rules
from tune.doctor import examination


def test_trials_that_name_one_class_are_counted() -> None:
    scores = [0.8] * 2 + [0.275] * 9 + [0.26]
    found = rules(examination.after(healthy(scores, top_share=[0.3] * 2 + [1.0] * 9 + [0.4])))
    assert found["collapsed"].what == "10 of 12 trials ended at chance"


def test_a_weak_trial_is_not_a_collapsed_one() -> None:
    """Its interval reaches down to the majority rate, but it names several classes and is above it."""
    assert "collapsed" not in rules(examination.after(healthy([0.8] + [0.31] * 11)))
    assert "collapsed" in rules(examination.after(healthy([0.8] + [0.31] * 11, top_share=np.nan)))


def test_a_trial_that_knows_its_training_images_has_not_collapsed() -> None:
    """Its kept epoch may well name one class: the first, before it overfits."""
    scores = [0.8] * 2 + [0.275] * 10
    assert "collapsed" not in rules(examination.after(healthy(scores, last_training_accuracy=0.9)))
    assert "collapsed" in rules(examination.after(healthy(scores, last_training_accuracy=0.29)))


def test_a_network_that_died_after_its_best_epoch_has_a_good_score() -> None:
    assert examination.after(healthy(top_share=1.0)) == []


def test_a_rate_that_parts_the_dead_from_the_living_is_named() -> None:
    rates = np.geomspace(0.0005, 0.01, 12)
    facts = healthy([0.8, 0.79, 0.78, 0.77] + [0.25] * 8, learning_rate=rates)
    found = rules(examination.after(facts))["learning-rate"]
    assert "decided which trials learned" in found.what
    assert f"search below {rates[4]:.2g}" == found.advice
    slow = healthy([0.8, 0.79, 0.78, 0.77] + [0.25] * 8, learning_rate=rates[::-1])
    assert f"search above {rates[7]:.2g}" in rules(examination.after(slow))["learning-rate"].advice


def test_rates_that_all_lie_in_the_dead_region_are_explained_by_it() -> None:
    found = rules(examination.after(healthy([0.25] * 12, learning_rate=np.geomspace(1, 90, 12))))["learning-rate"]
    assert "known to teach this network nothing" in found.what


@pytest.mark.parametrize(
    ("changed", "rule", "evidence"),
    [
        ({"scores": [0.31] + [0.28] * 11, "last_training_accuracy": 0.55}, "nothing-learned", "a trial reached 0.55"),
        ({"dead_units": [0.2] + [0.97] * 11}, "dead-relus", "at least 97%"),
        ({"last_training_accuracy": 0.98, "scores": np.linspace(0.6, 0.5, 12)}, "gap", "at most 0.65"),
        ({"learning_rate": [0.0001, 0.00012, 0.00011] + [0.001] * 9}, "at-bound", "0.0001 at its lower bound"),
        ({"trial": range(12)}, "defaults", "the defaults reached 0.820, the best of 11 others 0.795"),
        ({"best_epoch": 10}, "still-learning", "12 of the 12 trials with 10 epochs or more"),
    ],
)
def test_what_the_trials_say_together(changed: dict[str, Any], rule: str, evidence: str) -> None:
    found = rules(examination.after(healthy(**changed)))
    assert list(found) == [rule]
    assert evidence in found[rule].evidence


def test_few_images_cannot_choose() -> None:
    few = replace(healthy(list(np.linspace(0.64, 0.52, 12))), validation_counts=(7, 6, 6, 6))
    found = rules(examination.after(few))
    assert "0.629 for the second and 0.575 for the middle one of 12" in found["indistinguishable"].evidence
    assert "indistinguishable" not in rules(examination.after(healthy(list(np.linspace(0.64, 0.60, 12)))))


def test_failed_trials_are_read_for_what_they_have_in_common() -> None:
    lost = [f"the loss is no finite number at epoch {n}, batch 3, learning rate {n}e+30" for n in range(1, 9)]
    facts = healthy(status=["finished"] * 4 + ["failed"] * 8, error=[np.nan] * 4 + lost)
    found = rules(examination.after(facts))
    assert found["diverged"].what == "the loss of 8 of 12 trials left the numbers"
    assert found["same-error"].what == "8 of 12 trials failed in the same way"
    assert found["same-error"].evidence == lost[0]
    one = healthy(status=["finished"] * 11 + ["failed"], error=[np.nan] * 11 + lost[:1])
    assert examination.after(one) == []


def test_a_search_in_which_nothing_matters_hardly_ever_alarms() -> None:
    """Scores that depend on no hyperparameter, and every seventh trial dead: 400 such searches gave 2.5 % warnings."""
    random = np.random.default_rng(11)
    alarms = 0
    for _ in range(50):
        dead = random.random(12) < 0.15
        scores = np.where(dead, 0.25, random.binomial(400, random.normal(0.75, 0.04, 12)) / 400)
        drawn = np.exp(random.uniform(np.log(1e-4), np.log(1e-2), 12))
        top_share = np.where(dead, 1.0, 0.4)
        units = random.integers(8, 128, 12)
        facts = healthy(list(scores), learning_rate=drawn, dense_units=units, top_share=top_share)
        alarms += any(finding.severity == "warning" for finding in examination.after(facts))
    assert alarms <= 3
