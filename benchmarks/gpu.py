"""Whether input ever limits a GPU: images a second of fine-tuning ResNet50, fed by our loop and without any input.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick     shows that it runs; the numbers say nothing

`synthetic` is a bare loop (forward, backward, step; bfloat16 on CUDA) over one batch that lies on the device. `fed` is
`models.epoch.Learner` over a pack, as a run does it: bytes on the device if they fit, gathered there. `streamed` is the
same with the bytes in main memory. By turns, and the median counts. The last line is one JSON object.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import torch
import tyro
from torch.nn import functional as F

from data.collection import Subset
from data.resizing import Resize
from models.batches import World
from models.catalog import Classifier, ModelConfig, build
from models.epoch import Learner
from models.feeding import Rows, Streamed, near
from models.optimise import TrainConfig, make_optimizer
from models.preprocess import Preprocess
from models.processes import prepare_environment
from models.sources import Images

_CLASSES = 10


@dataclass(frozen=True)
class GpuConfig:
    """What is timed."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where the network is trained."""
    images: int = 4096
    """How many images an epoch has."""
    image_size: int = 224
    """Their side in pixels."""
    batch_size: int = 128
    """Images a step."""
    augment: Literal["off", "light", "strong"] = "light"
    """Changes to the images that are fed, made on the device."""
    rounds: int = 5
    """How often each way is timed, after one that is not."""
    quick: bool = False
    """A few small images, once."""


def network(config: GpuConfig) -> Classifier:
    model = ModelConfig("resnet50", weights="none", base="finetune")
    return build(model, classes=_CLASSES, image_size=config.image_size).to(config.device)


def synthetic(config: GpuConfig) -> Callable[[int], None]:
    """Trains on one batch that never leaves the device."""
    device, size = torch.device(config.device), config.image_size
    model = network(config).train()
    optimizer = make_optimizer(TrainConfig(), model.trainable(), device)
    batch = torch.rand(config.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(config.batch_size, device=device) % _CLASSES

    def epoch(_number: int) -> None:
        for _ in range(config.images // config.batch_size):
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(batch).float()
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return epoch


def fed(config: GpuConfig, pixels: Rows, subset: Subset) -> Callable[[int], None]:
    """Trains as a run does, on `pixels`."""
    device, preprocess = torch.device(config.device), Preprocess.for_model("resnet50", Resize(config.image_size))
    train = TrainConfig(batch_size=config.batch_size, augment=config.augment)
    source = Images(pixels, preprocess, device, config.augment)
    learner = Learner(network(config), source, train, _CLASSES, World(), device)

    def epoch(number: int) -> None:
        learner.train(subset, number)

    return epoch


def timed(config: GpuConfig) -> dict[str, float]:
    """Images a second, median over rounds."""
    device, size, rows = torch.device(config.device), config.image_size, np.arange(config.images)
    images = np.random.default_rng(0).integers(0, 256, (config.images, size, size, 3), dtype=np.uint8)
    names = tuple(map(str, rows))
    subset = Subset("train", rows, rows % _CLASSES, names, names)
    ways = {
        "synthetic": synthetic(config),
        "fed": fed(config, near(images, rows, device), subset),
        "streamed": fed(config, Streamed(images, device), subset),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(config.rounds + 1):
        for name, epoch in ways.items():
            start = time.perf_counter()
            epoch(turn + 1)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn > 0:  # the first sets the kernels up
                speeds[name].append(config.images / (time.perf_counter() - start))
    return {name: median(values) for name, values in speeds.items()}


def main() -> int:
    prepare_environment()
    config = tyro.cli(GpuConfig, description=__doc__)
    if config.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        print(json.dumps({"fed_of_synthetic": None}))
        return 0
    if config.quick:
        config = GpuConfig(config.device, 16, 64, 8, config.augment, rounds=1)
    speeds = timed(config)
    for name, speed in speeds.items():
        print(f"{name:>9} {speed:8.1f} images/s")
    ratios = {f"{name}_of_synthetic": speeds[name] / speeds["synthetic"] for name in ("fed", "streamed")}
    on = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    print(json.dumps({**ratios, "device": on, "images_per_second": speeds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
