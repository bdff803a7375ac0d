"""The two commands from end to end: data, Ray, training, bundle, report."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from data import cachefolder, store
from data.collection import Collection, load_collection
from data.errors import UserError
from models.catalog import build
from tune import distributed
from tune.bundling import make_bundle
from tune.outputs import RunFolder, begin, find_run, point_latest, saved_settings, working_on
from tune.report import describe_search, last_lines, make_report
from tune.searching import run_search
from tune.session import Session, start_ray
from tune.settings import CommandConfig, SearchConfig, TrainJobConfig
from tune.space import NUMBER
from tune.trial import Job
from tune.trials import best_row, commonest_error

Config = TypeVar("Config", SearchConfig, TrainJobConfig)


def search(config: SearchConfig) -> int:
    """Search, bundle the best trial, score it on the test images. Returns 0; `UserError` when no trial has a score."""
    with _begun(config.absolute(), "search") as (config, job, run, session):
        space = config.search_space()
        print(f"search      {config.trial_count} trials of {config.model.model}: {space.describe()}", flush=True)
        finished = run_search(config, job, run, session)
        best = best_row(finished.table[finished.table[NUMBER].isin(list(finished.checkpoints))])
        run.publish()
        if best is None:
            raise UserError(_no_trial(commonest_error(finished.table), run))
        details = describe_search(finished.table, best, space)
        with finished.checkpoints[details["best_trial"]].as_directory() as folder:
            _conclude(job.with_values(details["best_hyperparameters"]), folder, run, {"search": details})
        if finished.interrupted:
            print(f"go on with  uv run tune/search.py --resume --out {shlex.quote(run.out)}")
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
        data = replace(saved.data, cache_dir=cache_dir)
        config = replace(saved, data=data, out=run.out, cpus=config.cpus, resume=True)
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


def _no_trial(error: str, run: RunFolder) -> str:
    why = f"the commonest error: {error}" if error else "the search was ended before a trial had finished an epoch"
    return f"no trial has a score; {why}. {run.out}/trials.csv lists all of them."
