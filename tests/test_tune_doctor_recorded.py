"""The search doctor on real trials: tables that `benchmarks/doctor.py` recorded on 22 November 2026."""

from pathlib import Path

import pandas as pd
import pytest

from tests.tune_searches import DEFAULTS
from tune.doctor import examination
from tune.doctor.facts import Facts
from tune.space import Float, Int, Space, make_space

RECORDED = pd.read_csv(Path(__file__).parent / "planted-trials.csv")
# Validation and training images of each class, as the searches had them.
COUNTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "shuffled labels": ((64, 56), (252, 228)),
    "learning rate 10": ((69, 51), (244, 236)),
    "constant images": ((69, 51), (244, 236)),
    "one class 99 %": ((119, 1), (475, 5)),
    "NaN pixels, every fifth": ((57, 40), (200, 183)),
    "validation of 8": ((5, 3), (323, 289)),
    "healthy: generated 0": ((69, 51), (244, 236)),
    "healthy: generated 1": ((72, 48), (250, 230)),
    "healthy: photographs": ((4,) * 14 + (3,) * 5, (18,) * 10 + (17,) * 9),
}


def recorded(name: str) -> Facts:
    """The facts of a recorded search. Its images are not there, so of them only the counts."""
    validation, training = COUNTS[name]
    photographs = name == "healthy: photographs"
    first = {**DEFAULTS, "epochs": 30, "dense_units": 256} if photographs else DEFAULTS
    space = make_space("default", first, backbone=photographs)
    if name == "learning rate 10":
        space = Space((Float("learning_rate", 1, 100, "log"), Int("epochs", 3, 10)), {**DEFAULTS, "learning_rate": 10})
    return Facts(
        table=RECORDED[RECORDED["search"] == name].drop(columns="search"),
        space=space,
        planned=10,
        model="mobilenet_v2" if photographs else "cnn",
        frozen=photographs,
        patience=5,
        classes=tuple(f"class {number}" for number in range(len(validation))),
        train_counts=training,
        validation_counts=validation,
    )


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("shuffled labels", set(), {"collapsed", "learning-rate", "nothing-learned"}),
        ("learning rate 10", {"dead-region"}, {"collapsed", "learning-rate", "nothing-learned", "dead-relus"}),
        ("constant images", set(), {"collapsed", "learning-rate", "nothing-learned"}),
        ("one class 99 %", {"one-class", "rare-class"}, {"collapsed"}),
        ("NaN pixels, every fifth", set(), set()),
        ("validation of 8", {"small-validation"}, {"indistinguishable"}),
        ("healthy: generated 0", set(), set()),
        ("healthy: generated 1", set(), set()),
        ("healthy: photographs", set(), set()),
    ],
)
def test_planted_faults_are_found_and_the_healthy_left_in_peace(name: str, before: set[str], after: set[str]) -> None:
    facts = recorded(name)
    assert {finding.rule for finding in examination.before(facts)} == before
    assert {finding.rule for finding in examination.after(facts)} == after


def test_rates_are_blamed_only_where_they_are_known_to_kill() -> None:
    found = {
        name: {f.rule: f for f in examination.after(recorded(name))} for name in ("shuffled labels", "learning rate 10")
    }
    assert "does not explain" in found["shuffled labels"]["learning-rate"].what
    assert "known to teach this network nothing" in found["learning rate 10"]["learning-rate"].what
