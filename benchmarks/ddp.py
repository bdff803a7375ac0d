"""Epoch time of several workers under Ray Train, against torchrun with the same loop, data and batches.

    python benchmarks/ddp.py --rounds 5

The small network on the generated sample, gloo, one thread a worker. Both write a checkpoint after each epoch. An epoch
is wall time from the end of one to the end of the next, so it holds the report and the checkpoint; the first epoch of
a run belongs to its start. By turns, and the median counts: others may be at work on the machine. The last line is one
JSON object.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from data.collection import DataConfig, load_collection
from models.catalog import ModelConfig
from models.processes import prepare_environment
from models.training import ALONE, TrainConfig, TrainingData, TrainingRun, World


@dataclass(frozen=True)
class DdpConfig:
    """What is compared."""

    rounds: int = 5
    """How often each way is timed."""
    workers: int = 2
    """Processes that train one network."""
    image_size: int = 224
    """Side of the images in pixels."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=4, patience=0))
    """How the network is trained."""

    @property
    def data(self) -> DataConfig:
        return DataConfig(image_size=self.image_size).absolute()


@dataclass(frozen=True)
class Times:
    """Seconds of one run."""

    start: float
    """From the call to the first epoch's start."""
    epochs: list[float]
    """From the end of each epoch to the end of the next."""
    cpu: list[float]
    """CPU time of rank 0's process in each of these epochs; others' work on the machine hardly shows in it."""
    between: list[float]
    """Of `epochs`, what passes outside the loop's own epoch: the report and the checkpoint."""
    whole: float
    """From the call until it returned."""


def noting_times(run: TrainingRun, marks: Path) -> TrainingRun:
    """`run`, whose rank 0 writes down when its first epoch starts and when each ends."""
    run_epoch = run.run_epoch

    def noted() -> Any:
        if not run.scores:
            marks.write_text(f"{time.time()} 0 0\n")
        scores = run_epoch()
        with marks.open("a") as file:
            file.write(f"{time.time()} {scores.cpu_seconds} {scores.seconds}\n")
        return scores

    if run.world.rank == 0:
        run.run_epoch = noted  # type: ignore[method-assign]
    return run


def under_ray(config: DdpConfig, folder: Path) -> Times:
    """One run of Ray Train on the Ray that is up."""
    from tune import distributed
    from tune.trial import Job

    class TimedJob(Job):
        def start(self, world: World = ALONE) -> TrainingRun:
            return noting_times(super().start(world), folder / "marks")

    job = TimedJob(ModelConfig(), config.train, load_collection(config.data))
    return timed(lambda: distributed.fit(job, workers=config.workers, name="run", storage=str(folder)), folder)


def under_torchrun(config: DdpConfig, folder: Path) -> Times:
    """One run of torchrun, which starts this file once for each worker."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(config.workers)]
    command = [*torchrun, __file__, *sys.argv[1:]]
    environment = {**os.environ, "EAGLERAY_MARKS": str(folder), "OMP_NUM_THREADS": "1"}
    return timed(lambda: subprocess.run(command, env=environment, check=True, capture_output=True), folder)


def timed(work: Any, folder: Path) -> Times:
    """`work`, which leaves the file that `noting_times` writes in `folder`."""
    begin = time.time()
    work()
    end = time.time()
    marks = [tuple(map(float, line.split())) for line in (folder / "marks").read_text().splitlines()]
    epochs = [after[0] - before[0] for before, after in pairwise(marks[1:])]
    between = [epoch - own for epoch, (_, _, own) in zip(epochs, marks[2:], strict=True)]
    return Times(marks[0][0] - begin, epochs, [cpu for _, cpu, _ in marks[2:]], between, end - begin)


def torchrun_worker(config: DdpConfig, folder: Path) -> None:
    """The same loop without Ray: `tune.distributed.train_worker` with torchrun's environment and a plain save."""
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    data = TrainingData.of(load_collection(config.data), "cnn")
    run = TrainingRun(ModelConfig(), config.train, data, world=world, cache_dir=config.data.cache_dir)
    noting_times(run, folder / "marks")
    while not run.finished:
        run.run_epoch()
        run.save(str(folder / f"checkpoint-{len(run.scores)}"))
    torch.distributed.destroy_process_group()


def main() -> int:
    prepare_environment()
    config = tyro.cli(DdpConfig, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    if "EAGLERAY_MARKS" in os.environ:
        torchrun_worker(config, Path(os.environ["EAGLERAY_MARKS"]))
        return 0
    from tune.session import start_ray

    load_collection(config.data)  # packed before anything is timed
    begin = time.time()
    start_ray(cpus=max(config.workers, os.cpu_count() or 1))
    ray_up = time.time() - begin
    times: dict[str, list[Times]] = {"ray": [], "torchrun": []}
    for turn in range(config.rounds):
        ways = [("ray", under_ray), ("torchrun", under_torchrun)]
        for name, way in ways if turn % 2 == 0 else reversed(ways):
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(way(config, Path(folder)))
            found = times[name][-1]
            epochs, cpu = (" ".join(f"{s:.2f}" for s in seconds) for seconds in (found.epochs, found.cpu))
            print(
                f"{name:>8}: start {found.start:.1f} s, epochs {epochs} s (CPU {cpu}), whole {found.whole:.1f} s",
                flush=True,
            )
    print(json.dumps(summary(times, ray_up)))
    return 0


def summary(times: dict[str, list[Times]], ray_up: float) -> dict[str, Any]:
    """Medians over runs; of each run's epochs their median."""
    epoch = {name: median(median(one.epochs) for one in runs) for name, runs in times.items()}
    cpu = {name: median(median(one.cpu) for one in runs) for name, runs in times.items()}
    between = {name: median(median(one.between) for one in runs) for name, runs in times.items()}
    start = {name: median(one.start for one in runs) for name, runs in times.items()}
    pairs = zip(times["ray"], times["torchrun"], strict=True)
    return {
        "epoch_ratio_to_torchrun": epoch["ray"] / epoch["torchrun"],
        "ratios": [median(ours.epochs) / median(theirs.epochs) for ours, theirs in pairs],
        "epoch_s": epoch,
        "epoch_cpu_s": cpu,
        "epoch_cpu_ratio": cpu["ray"] / cpu["torchrun"],
        "between_epochs_s": between,
        "start_s": {**start, "ray_itself": ray_up},
    }


if __name__ == "__main__":
    sys.exit(main())
