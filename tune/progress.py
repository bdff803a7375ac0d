"""What a person sees while the search runs, and `trials.csv` kept current: a callback on Ray Tune's driver."""

import sys
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import ray.tune
import tqdm

from data.errors import UserError
from tune.optunasearch import KillProofSearch
from tune.outputs import RunFolder
from tune.trials import SCORE, TuneTrial, best_row, trial_number, trial_table, write_table

_ENDED = ("finished", "pruned", "failed")


class SearchLog(ray.tune.Callback):
    """About every second, and after every trial, the table is written; after every trial a line is printed.

    With the results in a bucket, the bucket is brought up to date after each trial.

    It holds names and numbers only, since Ray pickles it with the experiment's state.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        names: tuple[str, ...],
        total: int,
        default: int | None = None,
        write_every: float = 1.0,
    ) -> None:
        self.run = run
        self._names = names
        self._total = total
        self._default = default
        self._write_every = write_every
        self._written = 0.0
        self._bar: tqdm.tqdm[Any] | None = None
        self._told: set[int] = set()
        self._ended: list[tuple[int, TuneTrial]] = []  # with the step of Tune's loop in which they ended
        self.add_costs: Callable[[pd.DataFrame], pd.DataFrame] | None = None
        self.watch: Callable[[pd.DataFrame], None] | None = None
        self.search: KillProofSearch | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_bar": None,
            "_written": 0.0,
            "add_costs": None,
            "watch": None,
            "search": None,
            "_ended": [],
        }

    def setup(self, *_: Any, **__: Any) -> None:
        self._bar = tqdm.tqdm(
            total=self._total, unit="trial", file=sys.stderr, dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        # Not upon a report: the last one before a pause would wait for the next, and so would a trial that just began.
        if time.monotonic() - self._written >= self._write_every:
            self._write(trials)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._ended.append((iteration, trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._ended.append((iteration, trial))

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        """Tell of ends that have been written down (`tune.pruning` a step after, `tune.snapshots` another one), so that
        what a person has read is not trained again after a kill."""
        self._tell_ended(trials, before=iteration - 1)

    def _tell_ended(self, trials: list[TuneTrial], before: int) -> None:
        while self._ended and self._ended[0][0] < before:
            _, trial = self._ended.pop(0)
            if trial.is_finished():  # one whose process died may be at work again
                self._tell(self._write(trials), trial)

    def on_experiment_end(self, trials: list[TuneTrial], **_: Any) -> None:
        self._tell_ended(trials, before=sys.maxsize)
        self._write(trials, unended=self.search.running() if self.search is not None else None)
        if self._bar is not None:
            self._bar.close()

    def _write(self, trials: list[TuneTrial], unended: set[int] | None = None) -> pd.DataFrame:
        table = trial_table(trials, self._names, unended=unended)
        table = self.add_costs(table) if self.add_costs else table
        self._written = time.monotonic()
        try:
            write_table(self.run.path("trials.csv"), table)
        except UserError as error:  # a disk that is full now may not be in a second; the search goes on
            tqdm.tqdm.write(f"warning: {error}", file=sys.stderr)
        return table

    def _tell(self, table: pd.DataFrame, trial: TuneTrial) -> None:
        number = trial_number(trial)
        if number in self._told:
            return
        self._told.add(number)
        try:
            self.run.publish()
        except UserError as error:  # the search goes on, and the next trial tries again
            tqdm.tqdm.write(f"warning: {error}", file=sys.stderr)
        row = table[table["trial"] == number].iloc[0]
        tqdm.tqdm.write(trial_line(row, self._names, self._default), file=sys.stdout)
        if self.watch is not None:
            self.watch(table)
        sys.stdout.flush()
        best = best_row(table)
        if self._bar is not None:
            self._bar.n = int(table["status"].isin(_ENDED).sum())
            if best is not None:
                self._bar.set_postfix_str(f"best {best[SCORE]:.3f} (trial {best['trial']})")
            self._bar.refresh()


def trial_line(row: pd.Series, names: tuple[str, ...], default: int | None) -> str:
    """One trial in one line, for the terminal. `default` is the trial with the default hyperparameters, if any has."""
    values = "  ".join(f"{name} {_short(row[name])}" for name in names)
    seconds = f"{row['seconds']:.3g} s" if pd.notna(row["seconds"]) else "-"
    if row["status"] == "failed":
        return f"trial {row['trial']:>3}  {values}  failed: {row['error']}"
    defaults = "  (defaults)" if row["trial"] == default else ""
    score = f"validation accuracy {row[SCORE]:.3f} (epoch {row['best_epoch']:.0f} of {row['epochs_run']:.0f})"
    early = row["status"] == "finished" and "epochs" in row and bool(row["epochs_run"] < row["epochs"])
    return (
        f"trial {row['trial']:>3}  {values}  {score}  {seconds}  {row['status']}{' early' if early else ''}{defaults}"
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
