"""The one training loop, in steps of one epoch: alone or on several workers, it is the same code."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import UserError
from models import checkpoint, probe, seeds, weights
from models.batches import World
from models.catalog import Classifier, ModelConfig, Standardise, build, build_head
from models.epoch import Learner
from models.features import FrozenBase
from models.feeding import near
from models.optimise import TrainConfig, learning_rate_at
from models.records import EpochScores, NonFiniteLoss, TrainingData
from models.sources import Images, KeptFeatures, Source

__all__ = ["EpochScores", "NonFiniteLoss", "TrainConfig", "TrainingData", "TrainingRun", "World", "load_best"]

ALONE = World()


class TrainingRun:
    """One network, trained epoch by epoch.

    With `world.size` > 1 each worker makes the same run with its own rank, calls the same methods in the same order,
    and gets the same scores and weights. On a CPU a run that was saved and loaded goes on bit for bit; on a GPU as far
    as its kernels repeat themselves. Each epoch reseeds torch's global generator.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        data: TrainingData,
        *,
        world: World = ALONE,
        device: str = "cpu",
        cache_dir: str = "",
    ) -> None:
        data.check()
        self.model_config, self.config = model.resolved(), train.resolved(frozen=model.frozen)
        self.data, self.world = data, world
        self.scores: list[EpochScores] = []
        self._device, self._cache_dir = torch.device(device), cache_dir
        self._best: dict[str, Tensor] | None = None
        self._base_identity = _base_identity(model, cache_dir)
        if self._device.type == "cuda" and self._device.index is not None:
            torch.cuda.set_device(self._device)  # or nccl would meet all workers of a node on its first GPU
        trained = self._make_trained()
        self._layout = self._choose_layout(trained)
        trained = trained.to(memory_format=self._layout)
        source = self._make_source(trained)
        self._learner = Learner(trained, source, train, len(data.classes), world, self._device)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or `patience` of them have passed without a better validation loss."""
        if not self.scores:
            return False
        last = self.scores[-1]
        return last.epoch >= self.config.epochs or 0 < self.config.patience <= last.epoch - last.best_epoch

    def run_epoch(self) -> EpochScores:
        """Train on every training image once, then score the validation images. NonFiniteLoss if it diverges."""
        assert not self.finished, "the run is finished"
        start, cpu_start, epoch = time.perf_counter(), time.process_time(), len(self.scores) + 1
        training = self._learner.train(self.data.train, epoch)
        validation = self._learner.validate(self.data.validation, epoch)
        best = (epoch, validation.loss, validation.accuracy)
        if self.scores and self.scores[-1].best_validation_loss <= validation.loss:
            last = self.scores[-1]
            best = (last.best_epoch, last.best_validation_loss, last.best_validation_accuracy)
        else:
            self._best = checkpoint.snapshot(self._learner.trained.state_dict())
        scores = EpochScores(
            epoch=epoch,
            learning_rate=learning_rate_at(self.config, self._learner.steps - 1),
            training_loss=training.loss,
            training_accuracy=training.accuracy,
            validation_loss=validation.loss,
            validation_accuracy=validation.accuracy,
            validation_balanced_accuracy=validation.balanced_accuracy,
            validation_top_share=validation.top_share,
            dead_units=validation.dead_units,
            images=len(self.data.train.rows),
            seconds=time.perf_counter() - start,
            cpu_seconds=time.process_time() - cpu_start,
            best_epoch=best[0],
            best_validation_loss=best[1],
            best_validation_accuracy=best[2],
        )
        self.scores.append(scores)
        return scores

    def best_model(self) -> Classifier:
        """The whole network with the best epoch's weights, in eval mode, on the run's device."""
        assert self._best is not None, "no epoch has run"
        size, classes = self.data.preprocess.resize.size, len(self.data.classes)
        return _assemble(self.model_config, self._best, classes, size, self._cache_dir).to(self._device)

    def save(self, folder: str) -> None:
        """Write what is needed to go on exactly. Rank 0 writes, others return at once. A frozen base is not in it."""
        if self.world.rank == 0:
            content = {
                **self._identity(),
                "state": self._learner.trained.state_dict(),
                "best": self._best,
                "optimizer": self._learner.optimizer.state_dict(),
                "steps": self._learner.steps,
                "scores": [scores.as_dict() for scores in self.scores],
            }
            checkpoint.write(folder, content)

    def load(self, folder: str) -> None:
        """Go on from what `save` wrote, in place of what this run has done so far.

        UserError if it is from another network, other classes or other hyperparameters; `epochs` and `patience` may
        differ, so that a run can be made longer.
        """
        content = checkpoint.read(folder)
        for name, mine in self._identity().items():
            if content[name] != mine:
                raise UserError(
                    f"{folder}: the checkpoint's {name} is {content[name]}, this run's is {mine}; "
                    "go on with the same settings, or start anew in another folder"
                )
        self._learner.trained.load_state_dict(content["state"])
        checkpoint.restore_optimizer(self._learner.optimizer, content["optimizer"])
        self._learner.steps, self._best = content["steps"], content["best"]
        self.scores = [EpochScores(**scores) for scores in content["scores"]]

    def _make_trained(self) -> nn.Module:
        """The part that learns: the head alone over a frozen base, else everything. The same on every worker."""
        config, classes, size = self.model_config, len(self.data.classes), self.data.preprocess.resize.size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(self.config.seed, seeds.INITIAL))
            trained: nn.Module
            if config.frozen:
                trained = build_head(config, classes=classes, image_size=size)
            else:
                trained = build(config, classes=classes, image_size=size, cache_dir=self._cache_dir)
        return trained.to(self._device)

    def _choose_layout(self, trained: nn.Module) -> torch.memory_format:
        """How weights and images lie in memory while training; over a frozen base nothing that learns is convolved."""
        if self.model_config.frozen:
            return torch.channels_last
        return probe.layout_for(
            trained,
            self.model_config.model,
            self.data.preprocess,
            batch_size=self.config.batch_size // self.world.size,
            world=self.world,
            device=self._device,
            cache_dir=self._cache_dir,
        )

    def _make_source(self, trained: nn.Module) -> Source:
        """Where inputs come from; over a frozen base, the head's standardisation is fitted on the way."""
        data, config = self.data, self.model_config
        if not config.frozen:
            return self._images()
        base = FrozenBase(
            config,
            data.images,
            data.preprocess,
            pack_key=data.pack_key,
            device=self._device,
            cache_dir=self._cache_dir,
        )
        features = base.features()
        assert isinstance(trained, nn.Sequential)
        assert isinstance(trained[0], Standardise)
        trained[0].fit(features[data.train.rows])
        if self.config.augment == "off":
            return KeptFeatures(features, self._device)
        views = base.views(data.train.rows, self.config.augment, min(self.config.views, self.config.epochs))
        return KeptFeatures(features, self._device, data.train.rows, views)

    def _images(self) -> Images:
        data = self.data
        pixels = near(data.images, np.concatenate((data.train.rows, data.validation.rows)), self._device)
        return Images(pixels, data.preprocess, self._device, self.config.augment, self._layout)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with a run."""
        train = {name: value for name, value in asdict(self.config).items() if name not in ("epochs", "patience")}
        return {
            "model": _structure(self.model_config),
            "base": self._base_identity,
            "train": train,
            "classes": list(self.data.classes),
            "preprocess": self.data.preprocess.as_dict(),
        }


def _structure(config: ModelConfig) -> dict[str, Any]:
    """The fields of a ModelConfig but for where weights come from: a file may have moved."""
    return {name: value for name, value in asdict(config).items() if name != "weights"}


def _base_identity(config: ModelConfig, cache_dir: str) -> str:
    """sha256 of a frozen base's weights; empty where the base is trained, and so in the checkpoint."""
    return weights.identity(weights.read(config.model, config.source, cache_dir)) if config.frozen else ""


def _assemble(
    config: ModelConfig, state: Mapping[str, Tensor], classes: int, image_size: int, cache_dir: str
) -> Classifier:
    """The whole network from what was trained of it: `state` is the head's over a frozen base, else everything's."""
    model = build(config, classes=classes, image_size=image_size, cache_dir=cache_dir, load_weights=config.frozen)
    (model.head if config.frozen else model).load_state_dict(state)
    return model.eval()


def load_best(folder: str, model: ModelConfig, *, cache_dir: str = "") -> Classifier:
    """The best epoch's network, eval mode, on the CPU, from a folder that `TrainingRun.save` wrote."""
    model, content = model.resolved(), checkpoint.read(folder)
    if content["model"] != _structure(model):
        raise UserError(f"{folder}: of {content['model']}, not of {_structure(model)}; give the same model settings")
    if content["best"] is None:
        raise UserError(f"{folder}: saved before its first epoch ended, so there is no network in it; train on")
    if content["base"] != _base_identity(model, cache_dir):
        raise UserError(
            f"{folder}: trained over another base than {model.source}; give the weights it was trained with"
        )
    size = int(content["preprocess"]["resize"]["size"])
    return _assemble(model, content["best"], len(content["classes"]), size, cache_dir)
