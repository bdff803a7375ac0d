"""One pass over the training images and one over the validation images, alone or together with other workers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data.collection import Subset
from models import batches, seeds
from models.augment import draw
from models.batches import World
from models.catalog import Classifier
from models.feeding import to_device
from models.optimise import TrainConfig, learning_rate_at, make_optimizer, set_learning_rate
from models.records import NonFiniteLoss
from models.sources import Source

# Losses stay on the device and are looked at every so many batches: looking at each one would make a GPU wait, and
# looking at the end of the epoch would let a run that left the numbers burn a whole epoch.
_LOOK_EVERY = 50


class Passed(NamedTuple):
    """The means of one pass over all workers' training images."""

    loss: float
    accuracy: float


class Judged(NamedTuple):
    """What one pass over all workers' validation images gave; the shares are from 0 to 1."""

    loss: float
    accuracy: float
    balanced_accuracy: float
    top_share: float
    """Of the images, those given the class that is named most often: 1 where nothing is told apart."""
    dead_units: float
    """Of the dense layer's units, those whose ReLU gave 0 for every image: they hardly ever learn again."""


class Learner:
    """The part of a network that learns, its optimiser, and where its inputs come from."""

    def __init__(
        self, trained: nn.Module, source: Source, config: TrainConfig, classes: int, world: World, device: torch.device
    ) -> None:
        self.trained, self.steps = trained, 0
        self._source, self._config, self._classes = source, config, classes
        self._world, self._device = world, device
        parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(config, parameters, device)
        self._wrapped = trained
        if world.size > 1:
            # Buffers are averaged at the end of each epoch instead of being sent from rank 0 before each step.
            self._wrapped = DistributedDataParallel(trained, broadcast_buffers=False, gradient_as_bucket_view=True)

    def train(self, subset: Subset, epoch: int) -> Passed:
        """Learn from every image of `subset` once (with balance by sampling: as many draws)."""
        config, world = self._config, self._world
        torch.manual_seed(seeds.derive(config.seed, seeds.DROPOUT, epoch, world.rank))
        sampling = config.balance == "sampling"
        order = batches.epoch_order(subset.labels, sampling=sampling, seed=config.seed, epoch=epoch)
        plan = batches.cut(order, config.batch_size, world.size)
        weights = self._class_weights(subset)
        self._wrapped.train()
        waiting: list[Tensor] = []
        totals = np.zeros(1 + 2 * self._classes)
        for step, batch in enumerate(plan):
            waiting.append(self._step(subset, epoch, step, batch, weights))
            if len(waiting) == _LOOK_EVERY or step == len(plan) - 1:
                totals += self._look(epoch, step + 1 - len(waiting), waiting)
                waiting.clear()
        self._average_buffers()
        counted = totals[1 + self._classes :].sum()
        return Passed(float(totals[0] / counted), float(totals[1 : 1 + self._classes].sum() / counted))

    def validate(self, subset: Subset, epoch: int) -> Judged:
        """Score the images of `subset`, in eval mode and never augmented; each worker scores its share of them."""
        share, classes = self._world.part(len(subset.rows)), self._classes
        rows, labels = subset.rows[share], subset.labels[share]
        sums = torch.zeros(1 + 2 * classes, dtype=torch.float64, device=self._device)
        named = torch.zeros(classes, dtype=torch.float64, device=self._device)
        self.trained.eval()
        with torch.no_grad(), _Firing(self.trained, self._device) as firing:
            for start in range(0, len(rows), self._source.chunk):
                part = slice(start, start + self._source.chunk)
                logits = self.trained(self._source.plain(rows[part])).double()
                truth = to_device(labels[part], self._device)
                sums += self._tally(F.cross_entropy(logits, truth, reduction="none"), logits, truth)
                named.index_add_(0, logits.argmax(1), torch.ones_like(truth, dtype=torch.float64))
        # One message for all: sums and counts add up exactly, and a unit that fired on any worker is alive.
        both = self._over_workers(torch.cat((sums, named, firing.fired.double()))).cpu().numpy()
        totals, named_everywhere, fired = np.split(both, [1 + 2 * classes, 1 + 3 * classes])
        if not np.isfinite(totals[0]):
            rate = learning_rate_at(self._config, self.steps - 1)
            raise NonFiniteLoss(
                f"the validation loss is no finite number after epoch {epoch}, batch {self.steps} of the run, learning "
                f"rate {rate:g}; give a lower --learning-rate"
            )
        right, counts = totals[1 : 1 + classes], totals[1 + classes :]
        present, images = counts > 0, counts.sum()
        return Judged(
            loss=float(totals[0] / images),
            accuracy=float(right.sum() / images),
            balanced_accuracy=float((right[present] / counts[present]).mean()),
            top_share=float(named_everywhere.max() / images),
            dead_units=float((fired == 0).mean()),
        )

    def _step(self, subset: Subset, epoch: int, step: int, batch: batches.Indices, weights: Tensor | None) -> Tensor:
        """Learn from this worker's part of a global batch; its tally stays on the device."""
        config, part = self._config, self._world.part(len(batch))
        mine = batch[part]
        draws = None
        if config.augment != "off":
            draws = to_device(draw(len(batch), config.seed, epoch, step)[part].numpy(), self._device)
        labels = to_device(subset.labels[mine], self._device)
        set_learning_rate(self.optimizer, learning_rate_at(config, self.steps))
        with self._mixed_precision():
            logits = self._wrapped(self._source.training(subset.rows[mine], draws, epoch)).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        if weights is not None:
            losses = losses * weights[labels]
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages the workers' gradients; parts of a batch may differ in size, so each worker brings its *sum* over
        # the global count, times the number of workers: the average is then the gradient of the global mean.
        (losses.sum() * (self._world.size / len(batch))).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.steps += 1
        return self._tally(losses.detach().double(), logits.detach(), labels)

    def _tally(self, losses: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
        """float64 (1 + 2 classes,): sum of losses, then per class how many were right, then how many there were."""
        tally = torch.zeros(1 + 2 * self._classes, dtype=torch.float64, device=self._device)
        tally[0] = losses.sum()
        # index_add_ and no bincount, which would make a GPU wait.
        tally.index_add_(0, 1 + truth, (logits.argmax(1) == truth).double())
        return tally.index_add_(0, 1 + self._classes + truth, torch.ones_like(truth, dtype=torch.float64))

    def _look(self, epoch: int, first: int, waiting: Sequence[Tensor]) -> np.ndarray[Any, Any]:
        """Sum of the tallies over batches and workers; NonFiniteLoss on *every* worker if one has none."""
        tallies: np.ndarray[Any, Any] = self._over_workers(torch.stack(list(waiting))).cpu().numpy()
        lost = np.flatnonzero(~np.isfinite(tallies[:, 0]))
        if len(lost):
            rate = learning_rate_at(self._config, self.steps - len(waiting) + int(lost[0]))
            raise NonFiniteLoss(
                f"the loss is no finite number at epoch {epoch}, batch {first + int(lost[0]) + 1}, learning rate "
                f"{rate:g}; give a lower --learning-rate"
            )
        return np.asarray(tallies.sum(axis=0))

    def _class_weights(self, subset: Subset) -> Tensor | None:
        if self._config.balance != "weights":
            return None
        return torch.from_numpy(batches.class_weights(subset.labels, self._classes)).to(self._device)

    def _mixed_precision(self) -> AbstractContextManager[Any]:
        """bfloat16 on CUDA while training; on CPUs without matrix units for it, it is slower than float32."""
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=self._device.type == "cuda")

    def _over_workers(self, values: Tensor) -> Tensor:
        if self._world.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def _average_buffers(self) -> None:
        """BatchNorm's running means and variances: each worker saw its own images, and all go on with the average."""
        if self._world.size > 1:
            for module in self.trained.modules():
                if isinstance(module, nn.BatchNorm2d):
                    for buffer in (module.running_mean, module.running_var):
                        assert buffer is not None
                        self._over_workers(buffer).div_(self._world.size)


class _Firing:
    """Watches the dense layer's ReLU while the network is in use: `fired` (units,) says which gave more than 0."""

    def __init__(self, trained: nn.Module, device: torch.device) -> None:
        head = trained.head if isinstance(trained, Classifier) else trained
        assert isinstance(head, nn.Sequential)
        (self._relu,) = (module for module in head if isinstance(module, nn.ReLU))
        units = next(module.out_features for module in head if isinstance(module, nn.Linear))
        self.fired = torch.zeros(units, dtype=torch.bool, device=device)

    def __enter__(self) -> "_Firing":
        self._hook = self._relu.register_forward_hook(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _look(self, _module: nn.Module, _inputs: object, outputs: Tensor) -> None:
        self.fired |= (outputs > 0).any(dim=0)
