"""`--duel`: each optimiser searches its learning rate, then trains with it from the same seeds as the others."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data import store
from data.errors import UserError
from data.words import counted
from tune.doctor import examination
from tune.doctor.facts import Facts
from tune.duel.duelists import CONTESTANT, SEEDS, Contestant, Rates, Seeds
from tune.duel.scores import Answers, all_pairs, winner
from tune.gain import right_answers
from tune.outputs import RunFolder, bring_newer
from tune.plan import Plan
from tune.searching import Finished, meter_of, run_search
from tune.session import Session
from tune.settings import SearchConfig
from tune.snapshots import bring_study
from tune.space import NUMBER
from tune.trial import Job
from tune.trials import SCORE, best_row, commonest_error, write_table

RATES_PHASE, SEEDS_PHASE = "rates", "seeds"


@dataclass(frozen=True)
class Outcome:
    """What a duel leaves: the trial that becomes the bundle, and `details` as `duel.json` holds them."""

    job: Job
    checkpoint: Any  # ray.tune.Checkpoint
    details: dict[str, Any]


class Duel:
    """Two searches in folders of their own below the run's, so that each resumes by itself.

    All trials see the same images in the same split for the same most epochs, with the same early stopping and no
    pruning. A trial's first weights, its order of images and its dropout follow from its seed alone: contestants with
    one seed start equal. Learning rates are chosen on the validation images with the search's own seed; the contest
    is on the test images, which chose nothing, from the next `SEEDS` seeds.
    """

    def __init__(self, config: SearchConfig, job: Job, run: RunFolder, session: Session) -> None:
        self._config, self._job, self._run, self._session = config, job, run, session
        self._contestants = config.contestants
        self._meter = meter_of(config, session)
        self._finished: dict[str, Finished] = {}
        self._answers: dict[tuple[str, int], Answers] = {}

    def fight(self, facts: Facts) -> Outcome:
        """Both phases, or as much of them as Ctrl-C or the budget allows. `UserError` where no trial has a score."""
        self._announce()
        findings = examination.before(facts)
        if findings:
            print("\n".join(examination.lines(findings)), flush=True)
        rates = Rates.of(self._contestants, self._config.train.seed)
        count = self._config.trials_each
        plan = Plan(space=rates, trials=count * len(self._contestants), points=rates.points(count), default_trial=None)
        phase, finished = RATES_PHASE, self._search(RATES_PHASE, plan)
        chosen = {} if finished.interrupted else self._best_rates(finished)
        if chosen:
            seeds = Seeds.of(chosen, self._seeds)
            plan = Plan(space=seeds, trials=SEEDS * len(chosen), points=seeds.points(), default_trial=None)
            phase, finished = SEEDS_PHASE, self._search(SEEDS_PHASE, plan)
            self._ask_test_images(finished)
        outcome = self._outcome(phase, finished, chosen)
        outcome.details["doctor"] = [finding.as_dict() for finding in findings]
        self._run.write_json("duel.json", outcome.details)
        return outcome

    @property
    def _seeds(self) -> tuple[int, ...]:
        """Not the one that the learning rates were chosen with."""
        first = self._config.train.seed + 1
        return tuple(range(first, first + SEEDS))

    @property
    def _most_epochs(self) -> int:
        return self._job.train.resolved(frozen=self._job.model.frozen).epochs

    def _announce(self) -> None:
        names = ", ".join(contestant.name for contestant in self._contestants)
        print(
            f"duel        {names}: each tries {counted(self._config.trials_each, 'learning rate')}, then the best "
            f"of them from {SEEDS} seeds; at most {counted(self._most_epochs, 'epoch')} a training"
        )
        print("\n".join(f"cost        {line}" for line in self._config.budget.quote(self._meter)), flush=True)

    def _search(self, phase: str, plan: Plan) -> Finished:
        """One phase; it counts on from what the phase before it cost."""
        name = f"duel-{phase}"
        part = RunFolder(store.join(self._run.out, name), self._run.path(name))
        os.makedirs(part.local, exist_ok=True)
        if self._config.resume:
            bring_newer(part)
            bring_study(part)
        spent = self._meter.state()
        self._meter = meter_of(self._config, self._session)
        self._meter.restore({**spent, "trials": {}})  # the numbers of this phase's trials begin at 0 again
        print(f"{phase:<12}{counted(plan.trials, 'trial')}", flush=True)
        finished = run_search(
            self._config, plan, self._job, part, self._session, self._meter, lambda table: self._write(phase, table)
        )
        self._finished[phase] = finished
        self._write(phase, finished.table)
        self._run.publish()
        return finished

    def _write(self, phase: str, table: pd.DataFrame) -> None:
        """`trials.csv` of the whole duel: a trial is known by its phase and number."""
        tables = {**{name: finished.table for name, finished in self._finished.items()}, phase: table}
        parts = [part.assign(phase=name) for name, part in tables.items()]
        whole = pd.DataFrame([row for part in parts for row in part.to_dict("records")])
        whole["test_accuracy"] = [self._test_accuracy(row) for row in whole.to_dict("records")]
        first = ["phase", NUMBER, CONTESTANT, "seed"]
        write_table(self._run.path("trials.csv"), whole[[*first, *(c for c in whole if c not in first)]])

    def _test_accuracy(self, row: dict[Any, Any]) -> float | None:
        answers = self._answers.get((row[CONTESTANT], row["seed"])) if row["phase"] == SEEDS_PHASE else None
        return None if answers is None else float(answers.mean())

    def _best_rates(self, finished: Finished) -> dict[Contestant, float]:
        """Of each contestant that has one, the rate that the validation images choose."""
        best = {each: best_row(_of(finished.table, each)) for each in self._contestants}
        return {each: float(row["learning_rate"]) for each, row in best.items() if row is not None}

    def _ask_test_images(self, finished: Finished) -> None:
        """A seed that gave no network counts as guessing: as always naming the commonest training class."""
        collection = self._job.collection
        usual = np.bincount(collection.subset("train").labels).argmax()
        for _, row in finished.table.iterrows():
            key = (str(row[CONTESTANT]), int(row["seed"]))
            if row["status"] == "failed":
                self._answers[key] = collection.subset("test").labels == usual
            elif row["status"] == "finished":
                with finished.checkpoints[int(row[NUMBER])].as_directory() as folder:
                    self._answers[key] = right_answers(self._job_of(row), folder)
        self._write(SEEDS_PHASE, finished.table)

    def _job_of(self, row: pd.Series) -> Job:
        contestant = next(each for each in self._contestants if each.name == row[CONTESTANT])
        return self._job.with_values(contestant.values(float(row["learning_rate"]), int(row["seed"])))

    def _outcome(self, phase: str, finished: Finished, chosen: dict[Contestant, float]) -> Outcome:
        whole = phase == SEEDS_PHASE and not finished.interrupted
        failures = {
            each.name: self._why_none(each) if chosen and each not in chosen else "" for each in self._contestants
        }
        answers = {each.name: self._all_answers(each) for each in chosen} if whole else {}
        pairs = all_pairs(answers, failures) if whole else []
        won = winner(pairs)
        best = self._bundled(phase, finished, won)
        details = {
            "contestants": [self._describe(each, chosen, failures) for each in self._contestants],
            "seeds": list(self._seeds),
            "pairs": [pair.as_dict() for pair in pairs],
            "winner": won,
            "ended": finished.interrupted,
            **self._describe_test(),
            "bundled": {
                "phase": phase,
                NUMBER: int(best[NUMBER]),
                CONTESTANT: str(best[CONTESTANT]),
                "seed": int(best["seed"]),
                "learning_rate": float(best["learning_rate"]),
                "validation_accuracy": float(best[SCORE]),
            },
        }
        return Outcome(self._job_of(best), finished.checkpoints[int(best[NUMBER])], details)

    def _bundled(self, phase: str, finished: Finished, won: str) -> pd.Series:
        """The winner's best seed by validation, or the best trial of all."""
        table = finished.table[finished.table[NUMBER].isin(list(finished.checkpoints))]
        best = best_row(table[table[CONTESTANT] == won] if won else table)
        best = best_row(table) if best is None else best  # a winner whose opponents failed may have failed as well
        if best is None:
            error = commonest_error(finished.table)
            raise UserError(
                f"no trial of the {phase} phase has a score; "
                + (f"the commonest error: {error}" if error else "the duel was ended before one had finished an epoch")
                + f". {self._run.out}/trials.csv lists all of them."
            )
        return best

    def _why_none(self, contestant: Contestant) -> str:
        """Why a contestant has no learning rate, once the phase that chooses them is over."""
        error = commonest_error(_of(self._finished[RATES_PHASE].table, contestant))
        return f"no learning rate of {contestant.name} gave a network; the commonest error: {error}"

    def _all_answers(self, contestant: Contestant) -> Answers:
        return np.stack([self._answers[contestant.name, seed] for seed in self._seeds])

    def _describe(
        self, contestant: Contestant, chosen: dict[Contestant, float], failures: dict[str, str]
    ) -> dict[str, Any]:
        tables = {phase: _of(finished.table, contestant) for phase, finished in self._finished.items()}
        seeds = tables.get(SEEDS_PHASE, pd.DataFrame(columns=["seed", "status", SCORE]))
        scored = seeds.loc[seeds["status"] == "finished"].set_index("seed")[SCORE]
        answered = [seed for seed in self._seeds if (contestant.name, seed) in self._answers]
        rate = chosen.get(contestant)
        every = pd.concat([table[["epochs_run", "cpu_seconds"]].astype(float) for table in tables.values()])
        return {
            "name": contestant.name,
            "optimizer": contestant.optimizer,
            "schedule": contestant.schedule,
            "momentum": self._job.train.momentum if contestant.optimizer == "sgd" else None,
            "searched": contestant.dimension.describe(),
            "learning_rate": rate,
            "edge": "" if rate is None else _edge(rate, tables[RATES_PHASE]),
            "failure": failures[contestant.name],
            "failed_seeds": int((seeds["status"] == "failed").sum()),
            "validation_accuracy": [float(scored[seed]) if seed in scored else None for seed in answered],
            "test_accuracy": [float(self._answers[contestant.name, seed].mean()) for seed in answered],
            "cost": {
                "trials": len(every),
                "most_epochs": self._most_epochs,
                "epochs": int(every["epochs_run"].sum()),
                "cpu_seconds": float(every["cpu_seconds"].sum()),
            },
        }

    def _describe_test(self) -> dict[str, Any]:
        collection = self._job.collection
        labels, table = collection.subset("test").labels, collection.table
        counts = np.bincount(labels, minlength=len(collection.classes))
        return {
            "images": len(labels),
            "groups": int(table.loc[table["split"] == "test", "group"].nunique()),
            "majority_label": collection.classes[int(counts.argmax())],
            "majority_rate": float(counts.max() / len(labels)),
        }


def _of(table: pd.DataFrame, contestant: Contestant) -> pd.DataFrame:
    return table[table[CONTESTANT] == contestant.name]


def _edge(rate: float, tried: pd.DataFrame) -> str:
    """Whether a rate is the "lowest" or the "highest" of those that were tried, failed ones included; "" if neither."""
    rates = tried["learning_rate"]
    return "highest" if rate >= rates.max() else "lowest" if rate <= rates.min() else ""
