"""Facts for the tests of the search doctor: the bird story's search, and a healthy one to plant one fault in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tune.doctor.facts import Facts, Finding
from tune.space import Float, Int, Space, make_space

DEFAULTS = {"learning_rate": 0.001, "epochs": 10, "dense_units": 32}


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
    reached = np.array(np.linspace(0.82, 0.55, 12) if scores is None else scores)
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
            "validation_accuracy": reached,
            "validation_loss": 0.6,
            "last_training_accuracy": np.where(reached > 0.35, 0.9, 0.28),
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


def rules(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in findings}


def searched(rate: Float, **others: Any) -> Facts:
    space = Space((rate, Int("epochs", 3, 10)), {"learning_rate": rate.high, "epochs": 10})
    return replace(healthy(), space=space, **others)
