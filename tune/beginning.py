"""How both commands begin: images read and checked, Ray started, the run's folder made. Nothing is written before."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TypeVar

from data import cachefolder, store
from data.collection import Collection, load_collection
from data.errors import UserError
from data.words import counted
from models.catalog import build
from tune.outputs import RunFolder, begin, find_run, remember, saved_settings, working_on
from tune.session import Session, start_ray
from tune.settings import CommandConfig, SearchConfig, TrainJobConfig
from tune.snapshots import bring_study
from tune.trial import Job

Config = TypeVar("Config", SearchConfig, TrainJobConfig)


@contextlib.contextmanager
def begun(config: Config, kind: str) -> Iterator[tuple[Config, Job, RunFolder, Session]]:
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
        print("no --data given: using a generated sample of dives (images are drawn, not photographed)")
    collection = _checked_images(config)
    session = _start_ray(config)
    with working_on(run):
        if not resume:
            begin(run, config, kind)
        same_images(collection, run, resume)
        if resume:
            bring_study(run)
            remember(run, config, kind)
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
        + (
            f"; {counted(len(collection.problems), 'problem')}, see {run.path('problems.csv')}"
            if len(collection.problems)
            else ""
        )
    )


def same_images(collection: Collection, run: RunFolder, resume: bool) -> None:
    """Note what a new run learns from. UserError where one that is gone on with learned from something else."""
    images, resized = collection.fingerprints(), asdict(collection.resize)
    if not resume or not os.path.exists(run.path("fingerprints.json")):
        run.write_json("fingerprints.json", {**images, "resize": resized})
        return
    begun = run.read_json("fingerprints.json")
    if {name: begun.get(name) for name in images} != images:
        raise UserError(
            f"the images or their labels have changed since {run.out} was begun; trials of different data cannot be "
            "compared: restore the data, or begin a new run"
        )
    if begun.get("resize") != resized:
        raise UserError(
            f"{run.out} was begun by another version of eagleray, whose networks saw other pixels of the same images: "
            "finish it with that one, or begin a new run"
        )


def _start_ray(config: SearchConfig | TrainJobConfig) -> Session:
    session = start_ray(cpus=config.cpus)
    session.trials_that_fit(config.workers, config.threads)
    if session.dashboard:
        print(f"dashboard   {session.dashboard}  (its token: uv run ray get-auth-token)", flush=True)
    return session
