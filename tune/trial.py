"""One trial: the training loop of `models.training`, an epoch a step, as Ray Tune wants it."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import ray.tune
import torch

from data.collection import Collection
from data.errors import UserError
from models.catalog import ModelConfig
from models.footprint import footprint
from models.training import ALONE, NonFiniteLoss, TrainConfig, TrainingData, TrainingRun, World
from tune.objectives import OBJECTIVES

Report = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """All that a worker needs to train one model; small and picklable, since the pack is re-opened by its path."""

    model: ModelConfig
    train: TrainConfig
    collection: Collection
    threads: int = 1
    device: str = "cpu"
    measure: bool = False
    """Whether latency and size of the network are objectives, and so measured before it is trained."""

    def with_values(self, values: dict[str, Any]) -> "Job":
        """This job with the hyperparameters that the search drew; names that are no hyperparameter are left out."""
        model = {k: v for k, v in values.items() if k in ModelConfig.__dataclass_fields__}
        train = {k: v for k, v in values.items() if k in TrainConfig.__dataclass_fields__}
        return replace(self, model=replace(self.model, **model), train=replace(self.train, **train))

    def hyperparameters(self) -> dict[str, Any]:
        """Name and value of every hyperparameter, those of the network and those of the training."""
        return {**asdict(self.model.resolved()), **asdict(self.train.resolved(frozen=self.model.frozen))}

    def start(self, world: World = ALONE) -> TrainingRun:
        """Open the pack and build the network on this process."""
        torch.set_num_threads(self.threads)
        return TrainingRun(
            self.model,
            self.train,
            TrainingData.of(self.collection.here(), self.model.model),
            world=world,
            device=self.device,
            cache_dir=self.collection.config.cache_dir,
        )

    def network_report(self) -> Report:
        """What is known of the network before it is trained, if that is asked for."""
        if not self.measure:
            return {}
        classes, size = len(self.collection.classes), self.collection.resize.size
        return asdict(footprint(self.model, classes=classes, image_size=size))


def epoch_report(job: Job, run: TrainingRun) -> Report:
    """What Tune gets after each epoch: its scores, and what all epochs so far took, over all workers."""
    last, workers = run.scores[-1], run.world.size
    cpu_seconds = workers * sum(scores.cpu_seconds for scores in run.scores)
    seconds = workers * sum(scores.seconds for scores in run.scores)
    return {
        **last.as_dict(),
        "cpu_seconds": cpu_seconds,
        "epoch_cpu_seconds": workers * last.cpu_seconds,
        "cost_s": cpu_seconds if job.device == "cpu" else seconds,
        "images_per_second": last.images / max(last.seconds, 1e-9),
        "finished": run.finished,
        "done": run.finished,
    }


def failure_report(error: UserError) -> Report:
    """A trial that cannot go on (its loss left the numbers, say) ends with the worst objectives and its reason.

    A value and not an exception: the worker process lives on for the next trial, and the study holds none that stays
    RUNNING because its value was NaN. Where the loss left the numbers the sampler learns that the region is bad.
    """
    worst = {objective.metric: objective.worst for objective in OBJECTIVES.values()}
    return {**worst, "failure": str(error), "diverged": isinstance(error, NonFiniteLoss), "done": True}


class Trial(ray.tune.Trainable):
    """Tune's class interface, so that one warm process with torch imported serves many trials (`reuse_actors`)."""

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        assert job is not None, "give the job by ray.tune.with_parameters"
        self._job = job
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, values: dict[str, Any]) -> None:
        self._run: TrainingRun | None = None
        self._failure: UserError | None = None
        self._network: Report = {}
        try:
            job = self._job.with_values(values)
            self._run = job.start()
            self._network = job.network_report()
        except UserError as error:
            self._failure = error

    def step(self) -> Report:
        if self._run is not None and self._failure is None:
            try:
                if not self._run.finished:  # it is when a kill came between its last checkpoint and its end
                    self._run.run_epoch()
                return {**epoch_report(self._job, self._run), **self._network}
            except UserError as error:
                self._failure = error
        assert self._failure is not None
        return failure_report(self._failure)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._run is not None and self._failure is None:
            self._run.save(checkpoint_dir)

    def load_checkpoint(self, checkpoint: Any) -> None:
        if self._run is not None:
            self._run.load(str(checkpoint))
