"""The same training loop on several workers: Ray Train's TorchTrainer around `models.training`."""

import os
import tempfile
from dataclasses import replace
from typing import Any

import ray.train
import ray.train.torch
import ray.tune.integration.ray_train

from data.errors import UserError
from models.training import World
from tune.trial import Job, Report, epoch_report, failure_report

# A worker group that cannot be placed would be retried for ever, without a word; three attempts, then an error.
_START_ATTEMPTS = 3
# A lost worker (a spot node taken back, a process killed) sends the group back to its last checkpoint this many times.
_LOST_WORKERS = 3
_WORKERS = "workers"
# Seconds between two looks at the workers. Each look fetches one report, so epochs that are over sooner would have to
# wait for it: 2 s, unless Ray is told otherwise.
_LOOK_S = "0.5"


def train_worker(config: dict[str, Job]) -> str:
    """What each Ray Train worker runs: reports after every epoch, with rank 0's checkpoint, and returns why it failed.

    "" when it did not. A `UserError` is the same on every rank, so it is told and not retried; any other exception is
    one worker's accident and restarts the group from the last checkpoint.
    """
    job = config["job"]
    context = ray.train.get_context()
    world = World(rank=context.get_world_rank(), size=context.get_world_size())
    try:
        if job.device == "cuda":  # each worker of a node has a GPU of its own
            job = replace(job, device=str(ray.train.torch.get_device()))
        run = job.start(world)
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                run.load(folder)
        network = job.network_report()

        def tell() -> None:
            # Tune counts reports from 1 in each new driver; after a resume the study's steps are still the epochs.
            numbered = {**epoch_report(job, run), **network, "training_iteration": len(run.scores)}
            _report(numbered, run.save if world.rank == 0 else None)

        if run.finished:  # the machine that was to hear of the last epoch is gone
            tell()
        while not run.finished:
            run.run_epoch()
            tell()
    except UserError as error:
        _report(failure_report(error), None)
        return str(error)
    return ""


def _report(report: Report, save: Any) -> None:
    report.pop("done")  # Tune's word; under Ray Train a trial ends when the loop returns
    if save is None:
        ray.train.report(report)
        return
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        ray.train.report(report, checkpoint=ray.train.Checkpoint.from_directory(folder))


def fit(
    job: Job,
    *,
    workers: int,
    name: str,
    storage: str,
    callbacks: list[ray.train.UserCallback] | None = None,
) -> Any:
    """Train one model on `workers` processes and return Ray Train's `Result`: its checkpoint is the latest epoch's, its
    `return_value` that of `train_worker`.

    `storage` is a folder or an `s3://` address for checkpoints. A `name` that exists below it is continued from its
    last checkpoint, so a name is unique unless going on is what is wanted.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _LOOK_S)
    gpu = job.device == "cuda"
    # Any: Ray's annotations still describe the classes that these names had before Train's second version.
    train: Any = ray.train
    trainer = train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": job.threads, **({"GPU": 1} if gpu else {})},
        ),
        torch_config=train.torch.TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=train.FailureConfig(max_failures=_LOST_WORKERS, controller_failure_limit=_START_ATTEMPTS),
            # More than one: Tune may name the one before the last when it stops a trial.
            checkpoint_config=train.CheckpointConfig(num_to_keep=3),
            callbacks=callbacks or [],
        ),
    )
    try:
        return trainer.fit()
    except ray.train.ControllerError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"Ray Train could not run {workers} worker(s) of {job.threads} CPU(s): {reason}") from error


def worker_storage(storage: str, trial_id: str) -> str:
    """Where the workers of a Tune trial keep their checkpoints."""
    return os.path.join(storage, _WORKERS, _name(trial_id))


def _name(trial_id: str) -> str:
    """The trial's own id, so that a resumed search continues this very run."""
    return f"train-{trial_id}"


def trial_driver(values: dict[str, Any], job: Job, workers: int, storage: str) -> None:
    """A Tune trial that trains on several workers: it holds no CPU itself and forwards rank 0's reports."""
    trial = ray.tune.get_context().get_trial_id()
    fit(
        job.with_values(values),
        workers=workers,
        name=_name(trial),
        storage=os.path.join(storage, _WORKERS),
        callbacks=[ray.tune.integration.ray_train.TuneReportCallback()],
    )
