"""The search itself: Optuna proposes, Ray Tune runs, the table remembers."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
import ray.tune
import ray.tune.logger
from optuna.trial import TrialState

from data import store
from tune import distributed
from tune.budget import Meter
from tune.checkpoints import KeepRecent
from tune.ending import EndGently
from tune.gauges import SearchGauges
from tune.nodeprices import ClusterNodes
from tune.optunasearch import KillProofSearch, StatelessTPE
from tune.outputs import RunFolder
from tune.plan import Plan
from tune.prices import load_prices
from tune.progress import SearchLog
from tune.pruning import PruneByStudy
from tune.session import Session
from tune.settings import SearchConfig
from tune.snapshots import KeepState, put_back
from tune.space import Space
from tune.spending import Spending
from tune.studyfile import StudyFile
from tune.trial import Job, Trial
from tune.trials import TuneTrial, trial_number, trial_table, write_table
from tune.warmstart import STUDY

# Seconds between two writings of Tune's own state, at the least. What it does not hold, a kill makes the search do
# again; the end of a trial is written at once. On a disk a writing takes milliseconds, of which a trial of short epochs
# has few; in a bucket each is a paid request.
_STATE_PERIOD_S = {"disk": "1", "bucket": "5"}
# How often a trial whose process died (memory, a node) goes on from its last epoch; Tune may count one death twice. A
# trial that cannot be trained reports its reason as a value and is not tried again.
_LOST_PROCESSES = 4


@dataclass(frozen=True)
class Finished:
    """A search that ended: the table of trials, where each one's last checkpoint lies, the space that it ended with,
    and why it ended before all trials had (Ctrl-C or a limit; "" where it did not)."""

    table: pd.DataFrame
    checkpoints: dict[int, Any]  # trial number -> ray.tune.Checkpoint
    space: Space
    interrupted: str


def run_search(
    config: SearchConfig,
    plan: Plan,
    job: Job,
    run: RunFolder,
    session: Session,
    meter: Meter | None = None,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> Finished:
    """Run (or, with `config.resume`, go on with) the search and return what stands. Ctrl-C ends it early, not badly;
    a second one raises KeyboardInterrupt. `meter` counts what it costs; None: that of the running Ray.
    `watch` is called with the table of trials after each one's end."""
    meter = meter or meter_of(config, session)
    with _quiet_tune(_STATE_PERIOD_S["bucket" if run.remote else "disk"]):
        begun = config.resume and put_back(run)
        if config.resume and not begun:
            store.delete(run.path("study.db"))  # killed before a trial was written down: nothing to go on with
        tuner = _restore(config, job, run) if begun else _tuner(config, plan, job, run, session)
        search, ending, spending = _wire(tuner, run, config, meter, watch)
        with ending.on_ctrl_c():
            results = tuner.fit()
    trials: list[TuneTrial] = list(results._experiment_analysis.trials)
    table = spending.with_costs(trial_table(trials, plan.space.names, unended=search.running()))
    write_table(run.path("trials.csv"), table)
    whole = len(table) >= plan.trials and bool(table["status"].isin(["finished", "pruned", "failed"]).all())
    if whole:
        search.give_up_running()
    space = plan.searched(search.study)
    interrupted = "" if whole else ending.reason or "Ray stopped it"
    checkpoints = {trial_number(t): checkpoint for t in trials if (checkpoint := _checkpoint(t, run))}
    return Finished(table, checkpoints, space, interrupted)


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


def _tuner(config: SearchConfig, plan: Plan, job: Job, run: RunFolder, session: Session) -> ray.tune.Tuner:
    nested = config.workers > 1
    search = KillProofSearch(
        space=plan.proposals,
        metric=plan.metric(),
        mode=plan.mode(),
        points_to_evaluate=list(plan.points),
        sampler=StatelessTPE(config.train.seed),
        pruner=plan.pruner,
        study_name=STUDY,
        storage=StudyFile(_study_url(run)),
    )
    return ray.tune.Tuner(
        _trainable(config, job, run),
        tune_config=ray.tune.TuneConfig(
            num_samples=plan.trials,
            search_alg=search,
            scheduler=PruneByStudy(search),
            max_concurrent_trials=concurrent_trials(config, session),
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
                Spending(),
                KeepState(run),
                SearchLog(run, names=plan.space.names, total=plan.trials, default=plan.default_trial),
                KeepRecent(),
                SearchGauges(run),
                EndGently(of_workers=nested),
                ray.tune.logger.JsonLoggerCallback(),
            ],
        ),
    )


def _restore(config: SearchConfig, job: Job, run: RunFolder) -> ray.tune.Tuner:
    with _open_study(run) as study:
        # Trials whose process died are tried again, unless the search came to its end with them.
        unended = bool(study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))
    tuner = ray.tune.Tuner.restore(
        os.path.join(run.ray_storage, "tune"), trainable=_trainable(config, job, run), resume_errored=unended
    )
    search, _ = _parts(tuner)
    search.open_study(_study_url(run))
    return tuner


def _wire(
    tuner: ray.tune.Tuner,
    run: RunFolder,
    config: SearchConfig,
    meter: Meter,
    watch: Callable[[pd.DataFrame], None] | None,
) -> tuple[KillProofSearch, EndGently, Spending]:
    """Tell searcher, scheduler and callbacks of each other, of the meter, and of where the run lies now: those of a
    resumed search come out of Ray's pickles."""
    search, settings = _parts(tuner)
    settings.scheduler.search = search
    local: Any = tuner._local_tuner
    by_type: dict[Any, Any] = {type(callback): callback for callback in local.get_run_config().callbacks}
    ending, spending, log = by_type[EndGently], by_type[Spending], by_type[SearchLog]
    spending.begin(run, config.budget, meter)
    ending.search, ending.limit = search, spending.refusal
    log.run, log.add_costs, log.watch = run, spending.with_costs, watch
    log.search = by_type[SearchGauges].search_algorithm = search
    by_type[KeepState].run, by_type[SearchGauges].meter = run, meter
    return search, ending, spending


def meter_of(config: SearchConfig, session: Session) -> Meter:
    """A meter over the nodes of the running Ray, by the price table and the user's own."""
    slots = concurrent_trials(config, session)
    return Meter(load_prices(config.budget.prices), ClusterNodes(config.budget), slots=slots)


def _parts(tuner: ray.tune.Tuner) -> tuple[KillProofSearch, Any]:
    """The searcher and the settings of a tuner, which Ray has no public way to."""
    local: Any = tuner._local_tuner
    return local._tune_config.search_alg, local._tune_config


def _folder_name(trial: TuneTrial) -> str:
    return f"trial-{trial_number(trial):04d}"


def _study_url(run: RunFolder) -> str:
    return f"sqlite:///{run.path('study.db')}"


def concurrent_trials(config: SearchConfig, session: Session) -> int:
    """How many trials run at once: what was asked for, at most what fits. Trials whose workers cannot all be placed
    would wait for each other."""
    fitting = session.trials_that_fit(config.workers, config.threads)
    return min(config.max_concurrent or fitting, fitting)


@contextlib.contextmanager
def _open_study(run: RunFolder) -> Iterator[optuna.Study]:
    storage = optuna.storages.RDBStorage(_study_url(run))
    try:
        yield optuna.load_study(study_name=STUDY, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextlib.contextmanager
def _quiet_tune(state_period_s: str) -> Iterator[None]:
    """Tune's settings that exist as environment variables only, and its chatter, which our own lines replace."""
    settings = {
        "TUNE_GLOBAL_CHECKPOINT_S": state_period_s,
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # tune.ending has its own
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # It would tell how to interrupt and resume in its own words, which are not those of our command.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
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
