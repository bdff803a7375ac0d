"""The two commands from end to end: data, Ray, training, bundle, report."""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pandas as pd

from data import cachefolder, store
from data.collection import Collection, load_collection
from data.errors import UserError
from models.catalog import build
from tune import distributed
from tune.bundling import make_bundle
from tune.doctor import DoctorsVisit, facts_of
from tune.duel import Duel
from tune.gain import gain
from tune.objectives import picked
from tune.outputs import RunFolder, begin, find_run, point_latest, saved_settings, working_on
from tune.plan import plan_of
from tune.prices import Kind, load_prices
from tune.report import describe_search, last_lines, make_report
from tune.searching import Finished, meter_of, run_search
from tune.session import Session, start_ray
from tune.settings import CommandConfig, SearchConfig, TrainJobConfig
from tune.space import NUMBER
from tune.trial import Job
from tune.trials import SCORE, best_row, commonest_error

Config = TypeVar("Config", SearchConfig, TrainJobConfig)


def search(config: SearchConfig) -> int:
    """Search, bundle the best trial, score it on the test images. Returns 0; `UserError` when no trial has a score."""
    config = config.absolute()
    if not config.resume:
        _check(config)
    with _begun(config, "search") as (config, job, run, session):
        if config.contestants:
            return _duel(config, job, run, session)
        plan = plan_of(config)
        print(f"search      {plan.trials} trials of {config.model.model}: {plan.space.describe()}", flush=True)
        meter = meter_of(config, session)
        print("\n".join(f"cost        {line}" for line in config.budget.quote(meter)))
        visit = DoctorsVisit(facts_of(config, job.collection))
        measured = replace(job, measure=plan.measures)
        finished = run_search(config, plan, measured, run, session, meter, visit.look)
        standing = finished.table[finished.table[NUMBER].isin(list(finished.checkpoints))]
        kept, keeps = picked(standing[standing[SCORE].notna()], config.limits)
        best = best_row(kept)
        run.publish()
        if best is None:
            raise UserError(_no_trial(commonest_error(finished.table), run))
        details = describe_search(finished, best, plan, config.limits, keeps)
        with finished.checkpoints[details["best_trial"]].as_directory() as folder:
            chosen = job.with_values(details["best_hyperparameters"])
            details["doctor"] = [finding.as_dict() for finding in visit.last_word(finished.table)]
            details["gain"] = _gain(chosen, folder, job, finished, details["best_trial"])
            _conclude(chosen, folder, run, {"search": details})
        if finished.interrupted:
            print(f"ended       {finished.interrupted}; go on with  {_resume_command(run)}")
    return 0


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
    with _begun(config.absolute(), "training") as (config, job, run, _):
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
    if pd.isna(first[SCORE]):
        return None
    default = job.with_values({name: first[name] for name in finished.space.names})
    with finished.checkpoints[0].as_directory() as theirs:
        return gain(chosen, folder, default, theirs)


@contextlib.contextmanager
def _begun(config: Config, kind: str) -> Iterator[tuple[Config, Job, RunFolder, Session]]:
    """Find the run's folder, read the images once, start Ray, and leave manifest and problems beside the results.

    Nothing is written before images, network and workers are known to be good: a refused start uses up no name.
    """
    cache_dir = cachefolder.resolve(config.data.cache_dir)
    config = replace(config, data=replace(config.data, cache_dir=cache_dir))
    name = (os.path.splitext(os.path.basename(config.data.data.rstrip("/")))[0] or "sample") + f"-{config.model.model}"
    run = find_run(config.out, name=name, resume=config.resume, cache_dir=cache_dir, kind=kind)
    resume = config.resume
    if resume:
        saved = saved_settings(run, config, kind)
        config = saved.resumed_by(replace(config, out=run.out))
    elif not config.data.data:
        print("no --data given: using a generated sample of dives at 64 pixels (images are drawn, not photographed)")
    collection = _checked_images(config)
    session = _start_ray(config)
    with working_on(run):
        if not resume:
            begin(run, config, kind)
        _same_images(collection, run, resume)
        _write_data(collection, run)
        run.publish()
        job = Job(config.model, config.train, collection, threads=config.threads, device=session.device)
        yield config, job, run, session


def _checked_images(config: CommandConfig) -> Collection:
    """The images, refused where they or the network could not be used to the end."""
    collection = load_collection(config.data, progress=sys.stderr.isatty())
    for split in ("train", "validation", "test"):
        if len(collection.subset(split).rows) == 0:
            raise UserError(
                f"no images in the {split} split: too few groups to fill it, or the given splits leave it empty; "
                "give more groups, another --split-seed, or --group-by image (which then measures memory too)"
            )
    build(
        config.model,
        classes=len(collection.classes),
        image_size=collection.resize.size,
        cache_dir=collection.config.cache_dir,
    )
    return collection


def _write_data(collection: Collection, run: RunFolder) -> None:
    collection.write_manifest(run.path("manifest.csv"))
    store.write(run.path("problems.csv"), collection.problems.to_csv(index=False).encode())
    counts = collection.table["split"].value_counts()
    print(
        f"images      {len(collection.table)} in {len(collection.classes)} classes: "
        + ", ".join(f"{counts.get(split, 0)} {split}" for split in ("train", "validation", "test"))
        + (f"; {len(collection.problems)} problems, see {run.path('problems.csv')}" if len(collection.problems) else "")
    )


def _same_images(collection: Collection, run: RunFolder, resume: bool) -> None:
    now = collection.fingerprints()
    if not resume or not os.path.exists(run.path("fingerprints.json")):
        run.write_json("fingerprints.json", now)
    elif run.read_json("fingerprints.json") != now:
        raise UserError(
            f"the images or their labels have changed since {run.out} was begun; trials of different data cannot be "
            "compared: restore the data, or begin a new run"
        )


def _start_ray(config: SearchConfig | TrainJobConfig) -> Session:
    session = start_ray(cpus=config.cpus)
    session.trials_that_fit(config.workers, config.threads)
    if session.dashboard:
        print(f"dashboard   {session.dashboard}  (its token: uv run ray get-auth-token)", flush=True)
    return session


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
