"""The two commands from end to end: data, Ray, training, bundle, report."""

import shlex
import time
from dataclasses import replace
from typing import Any

from data import cachefolder
from data.errors import UserError
from data.words import counted
from tune import distributed
from tune.beginning import begun
from tune.bundling import make_bundle
from tune.doctor.examination import DoctorsVisit
from tune.doctor.facts import facts_of
from tune.duel.dueling import Duel
from tune.ending import CTRL_C
from tune.gain import gain
from tune.objectives import picked
from tune.outputs import RunFolder, point_latest
from tune.plan import Plan, plan_of
from tune.prices import Kind, load_prices
from tune.report import describe_search, last_lines, make_report
from tune.searching import Finished, meter_of, run_search
from tune.session import Session
from tune.settings import SearchConfig, TrainJobConfig
from tune.snapshots import has_state
from tune.space import NUMBER
from tune.spending import recall
from tune.trial import Job
from tune.trials import SCORE, best_row, commonest_error


def search(config: SearchConfig) -> int:
    """Search, bundle the best trial, score it on the test images. Returns 0; `UserError` when no trial has a score."""
    config = config.absolute()
    if not config.resume:
        _check(config)
    with begun(config, "search") as (config, job, run, session):
        if config.contestants:
            return _duel(config, job, run, session)
        plan = plan_of(config, begun=config.resume and has_state(run))
        what = f"{counted(plan.trials, 'trial')} of {config.model.model}"
        print(f"search      {what}: {plan.space.describe()}", flush=True)
        if len(plan.points) > 1:
            print(f"warm start  {counted(len(plan.points) - 1, 'point')} of {config.warm_start}, after the defaults")
        meter = meter_of(config, session)
        recall(run, meter)
        print("\n".join(f"cost        {line}" for line in config.budget.quote(meter)))
        visit = DoctorsVisit(facts_of(config, job.collection))
        measured = replace(job, measure=plan.measures)
        try:
            finished = run_search(config, plan, measured, run, session, meter, visit.look)
        except KeyboardInterrupt:
            print(f"stopped     go on with  {_resume_command(run)}", flush=True)
            raise
        run.publish()
        details = _choose(config, plan, finished, run)
        details["doctor"] = [finding.as_dict() for finding in visit.last_word(finished.table, finished.space)]
        with finished.checkpoints[details["best_trial"]].as_directory() as folder:
            chosen = job.with_values(details["best_hyperparameters"])
            details["gain"] = _gain(chosen, folder, job, finished, details["best_trial"])
            _conclude(chosen, folder, run, {"search": details, "spending": meter.summary()})
        if finished.interrupted:
            print(f"ended       {finished.interrupted}; go on with  {_resume_command(run)}")
            if finished.interrupted != CTRL_C:
                print("            and a higher --budget-usd or --budget-minutes")
    return 0


def _choose(config: SearchConfig, plan: Plan, finished: Finished, run: RunFolder) -> dict[str, Any]:
    """The report's part on the search, with the trial that becomes the bundle. `UserError` where none has a score."""
    standing = finished.table[finished.table[NUMBER].isin(list(finished.checkpoints))]
    kept, keeps = picked(standing[standing[SCORE].notna()], config.limits)
    top, best = best_row(standing), best_row(kept)
    if top is None or best is None:
        raise UserError(_no_trial(commonest_error(finished.table), run))
    return {**describe_search(finished, best, plan, config.limits, keeps), "top_trial": int(top[NUMBER])}


def _duel(config: SearchConfig, job: Job, run: RunFolder, session: Session) -> int:
    """Optimisers against each other; the winner, or the best where there is none, becomes the bundle."""
    # What the doctor knows of a search's own space does not hold for the wide rates of a duel.
    facts = replace(facts_of(config, job.collection), space=None, planned=0)
    outcome = Duel(config, job, run, session).fight(facts)
    with outcome.checkpoint.as_directory() as folder:
        _conclude(outcome.job, folder, run, {"duel": outcome.details})
    if outcome.details["ended"]:
        print(f"ended       {outcome.details['ended']}; go on with  {_resume_command(run)}")
    return 0


def train(config: TrainJobConfig) -> int:
    """Train one model under Ray Train, bundle it, score it. Returns 0; `UserError` when it cannot be trained."""
    with begun(config.absolute(), "training") as (config, job, run, _):
        result = distributed.fit(job, workers=config.workers, name="train", storage=run.ray_storage)
        if result.return_value:
            raise UserError(str(result.return_value))
        assert result.checkpoint is not None
        with result.checkpoint.as_directory() as folder:
            details = {"workers": config.workers, "hyperparameters": job.hyperparameters()}
            _conclude(job, folder, run, {"training": details})
    return 0


def _check(config: SearchConfig) -> None:
    """`UserError` for what the search would stumble over after it had begun: an earlier study, prices."""
    plan_of(config)
    known, given = load_prices(config.budget.prices), config.budget
    if given.instance_type:
        known.at(Kind(given.instance_type, given.region, given.market), time.time())


def _gain(chosen: Job, folder: str, job: Job, finished: Finished, best: int) -> dict[str, Any] | None:
    """Against trial 0, the defaults; None where that is the best one or left no network."""
    if best == 0 or 0 not in finished.checkpoints:
        return None
    first = finished.table[finished.table[NUMBER] == 0].iloc[0]
    if first["status"] != "finished":  # after one epoch of many they are not what they are by default
        return None
    default = job.with_values({name: first[name] for name in finished.space.names})
    with finished.checkpoints[0].as_directory() as theirs:
        return gain(chosen, folder, default, theirs)


def _conclude(job: Job, folder: str, run: RunFolder, extra: dict[str, Any]) -> None:
    """The bundle, its scores, `report.json`, and the last lines."""
    scored = make_bundle(job, folder, run.path("bundle"))
    cache_dir = job.collection.config.cache_dir
    cachefolder.evict(cache_dir, keep=(job.collection.pack_path,))
    cache = {"folder": cache_dir, "bytes": cachefolder.usage(cache_dir)}
    report = make_report(run, job.collection, job.model, scored, extra, cache)
    run.write_json("report.json", report)
    run.publish()
    if not run.remote:
        point_latest(run.local)
    print("\n".join(last_lines(report, run)))


def _resume_command(run: RunFolder) -> str:
    return f"uv run tune/search.py --resume --out {shlex.quote(run.out)}"


def _no_trial(error: str, run: RunFolder) -> str:
    why = f"the commonest error: {error}" if error else "the search was ended before a trial had finished an epoch"
    return f"no trial has a score; {why}. {run.out}/trials.csv lists all of them."
