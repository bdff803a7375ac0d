"""How the search stands, as Prometheus gauges on every dashboard that scrapes Ray: a callback on Ray Tune's driver."""

import os
import time
from typing import Any, Final

import pandas as pd
import ray.tune
import ray.util.metrics

from tune.budget import Meter
from tune.optunasearch import KillProofSearch
from tune.outputs import RunFolder
from tune.trials import SCORE, TuneTrial, best_row, trial_table

STATES: Final = ("waiting", "running", "finished", "pruned", "stopped", "failed")
"""The values of the tag `state`; each has a number at any time, 0 where no trial is so."""

_SEARCH: Final = ("search",)
# Ray puts `ray_` before these names.
_GAUGES: Final = {
    "eagleray_best_value": ("Highest validation accuracy of a trial so far, 0 to 1", _SEARCH),
    "eagleray_trials": ("Trials by state", (*_SEARCH, "state")),
    "eagleray_images_per_second": ("Training images a second, summed over the running trials' last epochs", _SEARCH),
    "eagleray_spent_usd": ("Cost of the cluster since the search began, by a dated price table", _SEARCH),
    "eagleray_cpu_seconds": ("CPU time of all trials", _SEARCH),
    "eagleray_epochs": ("Epochs done by all trials", _SEARCH),
}


class SearchGauges(ray.tune.Callback):
    """Keeps the gauges at what `trials.csv` says, about every second; the tag `search` is the run folder's name.

    Ray hands them on every ten seconds and drops a value that was not set again for twenty (Ray 2.60), so they end with
    the search; what they last said stays in Prometheus. `meter` is what tells the money. Ray pickles callbacks with the
    experiment's state, so of this one names and numbers only.
    """

    def __init__(self, run: RunFolder, *, update_every: float = 1.0) -> None:
        self.search = os.path.basename(run.out.rstrip("/"))
        self.meter: Meter | None = None
        self.search_algorithm: KillProofSearch | None = None
        self._update_every = update_every
        self._updated = 0.0
        self._gauges: dict[str, ray.util.metrics.Gauge] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "meter": None, "search_algorithm": None, "_gauges": {}, "_updated": 0.0}

    def setup(self, *_: Any, **__: Any) -> None:
        for name, (description, tags) in _GAUGES.items():
            self._gauges[name] = ray.util.metrics.Gauge(name, description, tags)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        if time.monotonic() - self._updated >= self._update_every:
            self._show(trial_table(trials, ()))

    def on_experiment_end(self, trials: list[TuneTrial], **_: Any) -> None:
        unended = self.search_algorithm.running() if self.search_algorithm is not None else None
        self._show(trial_table(trials, (), unended=unended))

    def _show(self, table: pd.DataFrame) -> None:
        best = best_row(table)
        if best is not None:
            self._set("eagleray_best_value", best[SCORE])
        for state in STATES:
            self._set("eagleray_trials", (table["status"] == state).sum(), state=state)
        self._set("eagleray_images_per_second", table.loc[table["status"] == "running", "images_per_second"].sum())
        self._set("eagleray_cpu_seconds", table["cpu_seconds"].sum())
        self._set("eagleray_epochs", table["epochs_run"].sum())
        self._set("eagleray_spent_usd", self.meter.usd if self.meter is not None else 0.0)
        self._updated = time.monotonic()

    def _set(self, name: str, value: Any, **tags: str) -> None:
        self._gauges[name].set(float(value), {"search": self.search, **tags})
