"""A whole search over a frozen backbone, and the CNN's training step, against what people write.

    python benchmarks/search.py [--weights mobilenet_v2.pth] [--quick]

The search: 20 trials of 5 to 20 epochs (the space of the bird story), MobileNetV2 frozen, 1,600 training and 400
validation JPEGs of 224 pixels, made up for it. Ours is the real command, from an empty cache folder, nothing pruned, no
early stop; Ray's daemons and workers count. What people write (`aswritten.py`) decodes and convolves every image in
every epoch of every trial: it is measured on a part of one epoch and multiplied, openly. All in processes of their own,
one thread each, without any settings of the allocator but those that our command makes itself.

The step: batch 32, one thread, images in memory, ours through `models.training`. Input is reported apart.

The last line is one JSON object: `frozen_search_speedup` (CPU seconds), `frozen_search_wall_ratio`,
`cnn_step_speedup` (64 pixels) and `cnn224_step_speedup` (images per CPU second).
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from proctree import timed

from models.processes import prepare_environment

ROOT = Path(__file__).resolve().parents[1]
SIZE, CLASSES = 224, 10
# Batches that are timed in each process, by the side of the image in pixels.
STEPS = {64: 60, 224: 8}


@dataclass(frozen=True)
class SearchBenchConfig:
    """What is measured."""

    weights: str = ""
    """State dict of a MobileNetV2; empty: random weights, which cost as much."""
    quick: bool = False
    """A small scale that shows whether the script works, and measures nothing."""
    rounds: int = 3
    """Rounds of the search, ours and theirs in turn."""
    step_rounds: int = 5
    """Rounds of the training step, ours and theirs in turn."""


@dataclass(frozen=True)
class Scale:
    """How much of it."""

    train: int = 1600
    validation: int = 400
    part: int = 5  # one of so many parts of an epoch is measured of what people write
    trials: int = 20
    steps: int = 1  # one of so many parts of the batches

    @classmethod
    def of(cls, quick: bool) -> "Scale":
        return cls(train=160, validation=40, trials=3, steps=4) if quick else cls()


def make_pictures(folder: Path, scale: Scale) -> Path:
    """JPEGs of quality 85, about 13 KB each: smooth colours that tell the class, and grain; returns the table."""
    from PIL import Image

    random = np.random.default_rng(0)
    colours = random.integers(60, 200, (CLASSES, 3))
    rows = []
    for split, count in (("train", scale.train), ("validation", scale.validation), ("test", 2 * CLASSES)):
        for number in range(count):
            label = number % CLASSES
            coarse = (colours[label] + random.normal(0, 25, (14, 14, 3))).clip(0, 255).astype(np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
            pixels = (smooth + random.normal(0, 7.5, (SIZE, SIZE, 1))).clip(0, 255).astype(np.uint8)
            name = f"{split}-{number:04d}.jpg"
            Image.fromarray(pixels).save(folder / name, quality=85)
            rows.append({"path": name, "label": f"class-{label}", "split": split})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def random_weights(folder: Path) -> str:
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), folder / "mobilenet_v2.pth")
    return str(folder / "mobilenet_v2.pth")


def environments() -> tuple[dict[str, str], dict[str, str]]:
    """What a shell would give (no setting of the allocator, no choice of threads, bytecode kept), and what our commands
    make of it for the processes that train."""
    chosen = ("MALLOC_", "LD_PRELOAD", "PYTHONDONTWRITEBYTECODE", "OMP_", "MKL_", "RAY_")
    for name in [name for name in os.environ if name.startswith(chosen)]:
        del os.environ[name]
    shell = dict(os.environ)
    prepare_environment()
    return shell, dict(os.environ)


def measure(script: str, *values: object, env: Mapping[str, str]) -> Any:
    """What a script beside this one prints about itself, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, values)]
    done = subprocess.run(command, env=dict(env), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def our_search(table: Path, weights: str, scale: Scale, folder: Path, env: Mapping[str, str]) -> dict[str, float]:
    """The real command, from an empty cache."""
    flags = {
        "--data": table,
        "--image-size": SIZE,
        "--cache-dir": folder / "cache",
        "--out": folder / "run",
        "--model": "mobilenet_v2",
        "--weights": weights,
        "--space": "story",
        "--trials": scale.trials,
        "--epochs": 10,
        "--dense-units": 32,
        "--patience": 0,
        "--prune": "off",
    }
    words = [str(word) for flag in flags.items() for word in flag]
    wall, cpu = timed([sys.executable, str(ROOT / "tune" / "search.py"), *words], env=dict(env))
    with (folder / "run" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * scale.trials, rows
    return {"cpu": cpu, "wall": wall, "epochs": sum(int(row["epochs_run"]) for row in rows)}


def compare_searches(config: SearchBenchConfig, scale: Scale, table: Path, weights: str) -> dict[str, Any]:
    """Both searches in turn, the second from its part."""
    shell, _ = environments()
    part = (scale.train // scale.part, scale.validation // scale.part)
    rounds = []
    for _ in range(config.rounds):
        epoch = measure("aswritten.py", "search", table, weights, *part, env=shell)
        with tempfile.TemporaryDirectory() as folder:
            ours = our_search(table, weights, scale, Path(folder), shell)
        times, cores = scale.part * ours["epochs"], min(os.cpu_count() or 1, scale.trials)
        cpu, wall = epoch * times, epoch * times / cores
        print(
            f"as written: {sum(part)} images of an epoch took {epoch:.1f} CPU s; times {scale.part} x "
            f"{ours['epochs']:.0f} epochs = {cpu:,.0f} CPU s, on {cores} cores at best {wall:,.0f} s of wall\n"
            f"ours, all of it: {ours['cpu']:.1f} CPU s, {ours['wall']:.1f} s of wall",
            flush=True,
        )
        rounds.append({**ours, "part": epoch, "speedup": cpu / ours["cpu"], "wall_ratio": wall / ours["wall"]})
    return {
        "frozen_search_speedup": statistics.median(one["speedup"] for one in rounds),
        "frozen_search_wall_ratio": statistics.median(one["wall_ratio"] for one in rounds),
        "search_rounds": rounds,
    }


def compare_steps(config: SearchBenchConfig, scale: Scale) -> dict[str, Any]:
    """Images per CPU second of the CNN's step, in turn."""
    shell, prepared = environments()
    answer: dict[str, Any] = {}
    for size, count in STEPS.items():
        batches = max(2, count // scale.steps)
        rates = [
            (
                measure("ourstep.py", "step", size, batches, env=prepared),
                measure("aswritten.py", "step", size, batches, env=shell),
            )
            for _ in range(config.step_rounds)
        ]
        ours, theirs = (statistics.median(side) for side in zip(*rates, strict=True))
        speedup = statistics.median(one / other for one, other in rates)
        print(
            f"step at {size:>3}: ours {ours:6.1f}, as written {theirs:6.1f} images per CPU s: {speedup:.2f}x",
            flush=True,
        )
        name = "cnn_step" if size == 64 else f"cnn{size}_step"
        answer |= {f"{name}_speedup": speedup, f"{name}_rates": rates}
    return answer


def compare_input(scale: Scale, table: Path) -> dict[str, Any]:
    """From files to batches, apart from everything else."""
    shell, prepared = environments()
    count = scale.train // scale.part
    theirs = measure("aswritten.py", "input", table, SIZE, count, env=shell)
    ours = measure("ourstep.py", "input", table, SIZE, count, env=prepared)
    print(
        f"input at {SIZE}, images per CPU s: as written {theirs:.0f} in every epoch; ours {ours['pack']:.0f} into the "
        f"pack, once, and {ours['batches']:.0f} out of it in every epoch: {ours['batches'] / theirs:.1f}x",
        flush=True,
    )
    return {"input_speedup": ours["batches"] / theirs, "input_rates": {"as_written": theirs, **ours}}


def main() -> int:
    config = tyro.cli(SearchBenchConfig, description=__doc__)
    scale = Scale.of(config.quick)
    with tempfile.TemporaryDirectory() as folder:
        table = make_pictures(Path(folder), scale)
        weights = os.path.abspath(config.weights) if config.weights else random_weights(Path(folder))
        answer = {
            **compare_searches(config, scale, table, weights),
            **compare_steps(config, scale),
            **compare_input(scale, table),
        }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
