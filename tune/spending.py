"""The meter beside a running search: read after every epoch and each second, kept in the run's folder."""

import json
import os
import sys
import time
from typing import Any

import pandas as pd
import ray.tune

from data import store
from data.errors import UserError
from tune.budget import Budget, Meter
from tune.outputs import RunFolder
from tune.space import NUMBER
from tune.trials import TuneTrial, trial_number

_FILE = "spending.json"
_EVERY_S = 1.0


def recall(run: RunFolder, meter: Meter) -> None:
    """Let the meter go on from what the run's folder holds, if it holds anything."""
    path = run.path(_FILE)
    if not os.path.exists(path):
        return
    try:
        meter.restore(json.loads(store.read(path)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): what the search has cost so far is not known; mend the file, or delete it "
            "to count from zero"
        ) from error


class Spending(ray.tune.Callback):
    """Reads the meter, and says when the search may not go on. Ray pickles it without meter, budget and run, which
    `begin` gives to a new search and to a resumed one alike."""

    def __init__(self) -> None:
        self._read = 0.0
        self._kept = 0.0
        self._epoch_s: dict[int, float] = {}
        self._last_epoch_s = 0.0  # what is expected of the first epoch of the next trial

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Spending.__init__(self)

    def begin(self, run: RunFolder, budget: Budget, meter: Meter) -> None:
        """Go on counting from what the run's folder holds."""
        self._run, self._budget, self.meter = run, budget, meter
        recall(run, meter)

    def refusal(self) -> str:
        """Why no further epoch may begin, as long as the longest of the last ones; "" where one may."""
        return self._budget.refuses(self.meter, max(self._epoch_s.values(), default=self._last_epoch_s))

    def with_costs(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table of trials with the column `cost_usd`: each one's share of what the cluster cost."""
        costs = [self.meter.cost_of(int(number)) for number in table[NUMBER]]
        table.insert(table.columns.get_loc("seconds"), "cost_usd", costs)  # type: ignore[arg-type]
        return table

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any
    ) -> None:
        self._last_epoch_s = float(result.get("time_this_iter_s", 0.0))
        self._epoch_s[trial_number(trial)] = self._last_epoch_s
        self.meter.add_cpu_seconds(float(result.get("epoch_cpu_seconds", 0.0)))
        self._look(trials)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        if time.monotonic() - self._read >= _EVERY_S:
            self._look(trials)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._epoch_s.pop(trial_number(trial), None)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._epoch_s.pop(trial_number(trial), None)

    def on_experiment_end(self, trials: list[TuneTrial], **_: Any) -> None:
        self._look(trials)
        self._keep()

    def _look(self, trials: list[TuneTrial]) -> None:
        self.meter.read(trial_number(trial) for trial in trials if trial.status == TuneTrial.RUNNING)
        self._read = time.monotonic()
        if self._read - self._kept >= _EVERY_S:
            self._keep()

    def _keep(self) -> None:
        self._kept = self._read
        try:
            self._run.write_json(_FILE, self.meter.state())
        except UserError as error:  # a disk that is full now may not be in a second; the search goes on
            print(f"warning: {error}", file=sys.stderr)
