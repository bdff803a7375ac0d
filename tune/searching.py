"""The search itself: Optuna proposes, Ray Tune runs, the table remembers."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
import ray.tune
import ray.tune.logger

from data import store
from tune import distributed
from tune.checkpoints import KeepRecent
from tune.optunasearch import KillProofSearch, StatelessTPE
from tune.outputs import RunFolder
from tune.progress import SearchLog
from tune.session import Session
from tune.settings import SearchConfig
from tune.snapshots import KeepState, put_back
from tune.trial import OBJECTIVE, Job, Trial
from tune.trials import TuneTrial, trial_number, trial_table, write_table

# Tune's searcher keeps an Optuna study by this name in study.db.
STUDY = "eagleray"
# Seconds between two writings of Tune's own state, at the least. What it does not hold, a kill makes the search do
# again: on a disk, where it takes milliseconds, each event is written; in a bucket each writing is a paid request.
_STATE_PERIOD_S = {"disk": "0", "bucket": "5"}
# How often a trial whose process died (memory, a node) goes on from its last epoch; Tune may count one death twice. A
# trial that cannot be trained reports its reason as a value and is not tried again.
_LOST_PROCESSES = 4


@dataclass(frozen=True)
class Finished:
    """A search that ended: the table of trials, where each one's last checkpoint lies, and whether it was cut short."""

    table: pd.DataFrame
    checkpoints: dict[int, Any]  # trial number -> ray.tune.Checkpoint
    interrupted: bool


def run_search(config: SearchConfig, job: Job, run: RunFolder, session: Session) -> Finished:
    """Run (or, with `config.resume`, go on with) the search and return what stands; Ctrl-C ends it early, not badly."""
    space = config.search_space()
    with _quiet_tune(_STATE_PERIOD_S["bucket" if run.remote else "disk"]):
        begun = config.resume and put_back(run)
        if config.resume and not begun:
            store.delete(run.path("study.db"))  # killed before a trial was written down: nothing to go on with
        tuner = _restore(config, job, run) if begun else _tuner(config, job, run, session)
        start = time.monotonic()
        results = tuner.fit()
    trials: list[TuneTrial] = list(results._experiment_analysis.trials)
    table = trial_table(trials, space.names)
    write_table(run.path("trials.csv"), table)
    short = len(table) < config.trial_count or bool((~table["status"].isin(["finished", "failed"])).any())
    interrupted = short and not (config.minutes and time.monotonic() - start >= config.minutes * 60)
    if not interrupted:
        close_study(run)
    checkpoints = {trial_number(t): checkpoint for t in trials if (checkpoint := _checkpoint(t, run))}
    return Finished(table, checkpoints, interrupted)


def _checkpoint(trial: TuneTrial, run: RunFolder) -> Any:
    """The latest checkpoint of a trial: Tune's own or (several workers) one that Ray Train left; None without one."""
    if trial.checkpoint is not None:
        return trial.checkpoint
    reported = (trial.last_result or {}).get("checkpoint_path")
    if not reported:
        return None
    folder = distributed.worker_storage(run.ray_storage, trial.trial_id)
    whole = {e.key.split("/")[0] for e in store.list_files(folder) if e.key.endswith("/checkpoint.pt")}
    # Ray Train may have gone on, and deleted it, while Tune was stopping.
    name = os.path.basename(reported)
    chosen = name if name in whole else max(whole, default="")
    return ray.tune.Checkpoint(store.join(folder, chosen)) if chosen else None


def _trainable(config: SearchConfig, job: Job, run: RunFolder) -> Any:
    if config.workers > 1:
        driver = ray.tune.with_parameters(
            distributed.trial_driver, job=job, workers=config.workers, storage=run.ray_storage
        )
        # Ray Train reserves the workers itself: a driver that held any part of a CPU would keep the last worker out. A
        # placement group must ask for something, so it asks for a byte.
        return ray.tune.with_resources(driver, {"cpu": 0, "memory": 1})
    resources: dict[str, float] = {"cpu": job.threads, **({"gpu": 1} if job.device == "cuda" else {})}
    return ray.tune.with_resources(ray.tune.with_parameters(Trial, job=job), resources)


def _tuner(config: SearchConfig, job: Job, run: RunFolder, session: Session) -> ray.tune.Tuner:
    space = config.search_space()
    nested = config.workers > 1
    search = KillProofSearch(
        space=space,
        metric=OBJECTIVE,
        mode="max",
        points_to_evaluate=[space.first_point()],
        sampler=StatelessTPE(config.train.seed),
        study_name=STUDY,
        storage=optuna.storages.RDBStorage(_study_url(run)),
    )
    return ray.tune.Tuner(
        _trainable(config, job, run),
        tune_config=ray.tune.TuneConfig(
            num_samples=config.trial_count,
            search_alg=search,
            max_concurrent_trials=concurrent_trials(config, session),
            time_budget_s=config.minutes * 60 if config.minutes else None,
            reuse_actors=not nested,
            trial_dirname_creator=_folder_name,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=run.ray_storage,
            verbose=0,
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_frequency=0 if nested else 1),
            failure_config=ray.tune.FailureConfig(max_failures=_LOST_PROCESSES),
            callbacks=[
                SearchLog(run, names=space.names, total=config.trial_count),
                KeepState(run),
                KeepRecent(),
                ray.tune.logger.JsonLoggerCallback(),
            ],
        ),
    )


def _restore(config: SearchConfig, job: Job, run: RunFolder) -> ray.tune.Tuner:
    tuner = ray.tune.Tuner.restore(
        os.path.join(run.ray_storage, "tune"), trainable=_trainable(config, job, run), resume_errored=True
    )
    # Ray pickles the searcher and the callbacks; what in them depends on where the run lies now is told them anew.
    restored: Any = tuner._local_tuner
    restored._tune_config.search_alg.open_study(_study_url(run))
    for callback in restored.get_run_config().callbacks:
        if isinstance(callback, SearchLog | KeepState):
            callback.run = run
    return tuner


def _folder_name(trial: TuneTrial) -> str:
    return f"trial-{trial_number(trial):04d}"


def _study_url(run: RunFolder) -> str:
    return f"sqlite:///{run.path('study.db')}"


def concurrent_trials(config: SearchConfig, session: Session) -> int:
    """How many trials run at once: what was asked for, at most what fits. Trials whose workers cannot all be placed
    would wait for each other."""
    fitting = session.trials_that_fit(config.workers, config.threads)
    return min(config.max_concurrent or fitting, fitting)


def close_study(run: RunFolder) -> None:
    """Mark what a kill left RUNNING in the study as failed: such a trial would puzzle every later reader of it."""
    storage = optuna.storages.RDBStorage(_study_url(run))
    study = optuna.load_study(study_name=STUDY, storage=storage)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    storage.remove_session()


@contextlib.contextmanager
def _quiet_tune(state_period_s: str) -> Iterator[None]:
    """Tune's settings that exist as environment variables only, and its chatter, which our own lines replace."""
    settings = {
        "TUNE_GLOBAL_CHECKPOINT_S": state_period_s,
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
