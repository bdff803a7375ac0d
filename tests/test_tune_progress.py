"""One line a trial, for the terminal."""

import pandas as pd
import pytest

from tune.progress import trial_line

TABLE = pd.DataFrame(
    {
        "trial": [0, 1, 2, 3],
        "epochs": [10, 10, 10, 10],
        "learning_rate": [0.001, 0.002, 0.003, 0.004],
        "status": ["finished", "finished", "pruned", "failed"],
        "validation_accuracy": [0.7, 0.8, 0.5, None],
        "best_epoch": [10.0, 2.0, 1.0, None],
        "epochs_run": [10.0, 7.0, 2.0, None],
        "seconds": [3.14159, 2.0, None, 1.0],
        "error": ["", "", "", "the loss is no finite number"],
    }
)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "(epoch 10 of 10)  3.14 s  finished  (defaults)"),
        (1, "(epoch 2 of 7)  2 s  finished early"),
        (2, "(epoch 1 of 2)  -  pruned"),
        (3, "learning_rate 0.004  epochs 10  failed: the loss is no finite number"),
    ],
)
def test_a_line_says_how_a_trial_ended(number: int, said: str) -> None:
    line = trial_line(TABLE.iloc[number], ("learning_rate", "epochs"), 0)
    assert line.startswith(f"trial   {number}  learning_rate")
    assert line.endswith(said)
