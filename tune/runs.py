"""The two commands from end to end: data, Ray, training, bundle, report."""

import os
import sys
from dataclasses import replace
from typing import Any

from data import cachefolder, store
from data.collection import Collection, load_collection
from data.errors import UserError
from models.catalog import build
from tune import distributed
from tune.bundling import make_bundle
from tune.outputs import RunFolder, open_run
from tune.report import describe_search, last_lines, make_report
from tune.searching import run_search
from tune.session import Session, start_ray
from tune.settings import SearchConfig, TrainJobConfig, changed_flags, from_dict
from tune.trial import Job
from tune.trials import best_row, commonest_error


def search(config: SearchConfig) -> int:
    """Search, bundle the best trial, score it on the test images. `UserError` when no trial has a score."""
    config, run, collection = _begin(config.absolute(), "search")
    names = tuple(d.name for d in config.search_space().dimensions)
    print(f"search      {config.trial_count} trials of {config.model.model}: {config.search_space().describe()}")
    session = _start_ray(config.cpus)
    job = Job(config.model, config.train, collection, threads=config.threads, device=session.device)
    finished = run_search(config, job, run, session)
    best = best_row(finished.table)
    run.publish()
    if best is None or int(best["trial"]) not in finished.checkpoints:
        raise UserError(_no_trial(commonest_error(finished.table), run))
    values = {name: best[name].item() if hasattr(best[name], "item") else best[name] for name in names}
    with finished.checkpoints[int(best["trial"])].as_directory() as folder:
        extra = {"search": describe_search(finished.table, best, names, config.search_space().describe())}
        _conclude(job.with_values(values), folder, run, extra)
    if finished.interrupted:
        print(f"go on with  uv run tune/search.py --resume --out {run.out}")
    return 0


def train(config: TrainJobConfig) -> int:
    """Train one model under Ray Train, bundle it, score it. Exit code 0; `UserError` when it cannot be trained."""
    config, run, collection = _begin(config.absolute(), "training")
    session = _start_ray(config.cpus)
    job = Job(config.model, config.train, collection, threads=config.threads, device=session.device)
    result = distributed.fit(job, workers=config.workers, name="train", storage=run.ray_storage)
    if result.return_value:
        raise UserError(str(result.return_value))
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        extra = {"training": {"workers": config.workers, "hyperparameters": job.hyperparameters()}}
        _conclude(job, folder, run, extra)
    return 0


def _begin(config: Any, kind: str) -> tuple[Any, RunFolder, Collection]:
    """Open the run's folder, read the images once, and leave manifest and problems beside the results."""
    config = replace(config, data=replace(config.data, cache_dir=cachefolder.resolve(config.data.cache_dir)))
    name = (os.path.splitext(os.path.basename(config.data.data.rstrip("/")))[0] or "sample") + f"-{config.model.model}"
    run = open_run(
        config.out, name=name, resume=config.resume, cache_dir=config.data.cache_dir, settings=config, kind=kind
    )
    if config.resume:
        config = _saved_settings(config, run, kind)
    elif not config.data.data:
        print("no --data given: using a generated sample of dives at 64 pixels (images are drawn, not photographed)")
    collection = load_collection(config.data, progress=sys.stderr.isatty())
    # A network that cannot be built (weights missing, images too small) is refused before anything is started.
    build(
        config.model,
        classes=len(collection.classes),
        image_size=collection.resize.size,
        cache_dir=config.data.cache_dir,
    )
    _same_images(collection, run, config.resume)
    collection.write_manifest(run.path("manifest.csv"))
    store.write(run.path("problems.csv"), collection.problems.to_csv(index=False).encode())
    counts = collection.table["split"].value_counts()
    print(
        f"images      {len(collection.table)} in {len(collection.classes)} classes: "
        + ", ".join(f"{counts.get(split, 0)} {split}" for split in ("train", "validation", "test"))
        + (f"; {len(collection.problems)} problems, see {run.path('problems.csv')}" if len(collection.problems) else "")
    )
    run.publish()
    return config, run, collection


def _saved_settings(given: Any, run: RunFolder, kind: str) -> Any:
    saved = run.read_json("settings.json")
    if saved["kind"] != kind:
        raise UserError(f"{run.out} holds a {saved['kind']}, not a {kind}; resume it with the command that began it")
    if saved["out"] != given.out:
        raise UserError(
            f"{given.out} was begun as {saved['out']}, and Ray's state holds that address; "
            "move it back there to resume it"
        )
    settings = from_dict(type(given), saved["settings"])
    changed = changed_flags(given, settings)
    if changed:
        raise UserError(
            f"a resumed {kind} keeps the settings it was begun with; leave out {', '.join(changed)}, or begin a new one"
        )
    data = replace(settings.data, cache_dir=given.data.cache_dir)
    return replace(settings, data=data, out=given.out, cpus=given.cpus, resume=True)


def _same_images(collection: Collection, run: RunFolder, resume: bool) -> None:
    now = collection.fingerprints()
    if not resume or not os.path.exists(run.path("fingerprints.json")):
        run.write_json("fingerprints.json", now)
    elif run.read_json("fingerprints.json") != now:
        raise UserError(
            f"the images or their labels have changed since {run.out} was begun; trials of different data cannot be "
            "compared: restore the data, or begin a new run"
        )


def _start_ray(cpus: int) -> Session:
    session = start_ray(cpus=cpus)
    if session.dashboard:
        print(f"dashboard   {session.dashboard}  (asks for the token that `ray get-auth-token` prints)", flush=True)
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
    print("\n".join(last_lines(report, run)))


def _no_trial(error: str, run: RunFolder) -> str:
    why = f"the commonest error: {error}" if error else "the search was ended before a trial had finished an epoch"
    return f"no trial has a score; {why}. {run.out}/trials.csv lists all of them."
