"""What reducing a large JPEG while it is decoded gains, and what it does to pixels and to a classifier.

    python benchmarks/reduced.py --pictures FOLDER
    python benchmarks/reduced.py --pictures FOLDER --weights backbone.pth --size 62

Photographs of usual sizes are put together from the folder's JPEGs (in a folder for each class), at quality 90. Each is
decoded and resized with and without, in turns; of the rounds' CPU ratios the median counts. `difference`: mean absolute
difference of the resized pixels, of 255.

With weights, a linear probe on a frozen MobileNetV2's features is trained on four fifths of the folder's images at
`--size` (small enough that they are reduced) and scored on the rest, per seed in four ways: trained on exact or reduced
pixels, scored on exact or reduced ones. The last line is one JSON object.
"""

import io
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from linear_probe import probe_accuracy
from PIL import Image
from underload import say

from data.images import Failure, Pixels, decode_resized
from data.resizing import Resize
from models.processes import prepare_environment

_SHAPES = (((4000, 3000), 224), ((1920, 1080), 224), ((1920, 1080), 64), ((640, 480), 64))


@dataclass(frozen=True)
class ReducedConfig:
    """What is measured, and on what."""

    pictures: Path
    """A folder with a folder of JPEGs for each class."""
    weights: str = ""
    """MobileNetV2's, for the part with a classifier; empty leaves it out."""
    size: int = 62
    """Pixels along a side of what the network sees, in that part."""
    seeds: int = 10
    rounds: int = 7
    """Of the timing."""


def photograph(files: list[Path], width: int, height: int, tile: int = 250) -> bytes:
    whole = Image.new("RGB", (width, height))
    places = [(x, y) for y in range(0, height, tile) for x in range(0, width, tile)]
    for number, place in enumerate(places):
        with Image.open(files[number % len(files)]) as picture:
            whole.paste(picture.convert("RGB").resize((tile, tile)), place)
    out = io.BytesIO()
    whole.save(out, "JPEG", quality=90)
    return out.getvalue()


def resized(blob: bytes, how: Resize) -> Pixels:
    found = decode_resized(blob, how)
    assert not isinstance(found, Failure), found
    return found


def timed(blob: bytes, how: Resize, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        resized(blob, how)
    return (time.process_time() - start) / times


def gain(blob: bytes, size: int, rounds: int) -> dict[str, float]:
    exact, reduced = Resize(size, reduced=False), Resize(size)
    times = max(1, round(0.3 / timed(blob, exact, 1)))
    pairs = [(timed(blob, exact, times), timed(blob, reduced, times)) for _ in range(rounds)]
    return {
        "speedup": statistics.median(before / after for before, after in pairs),
        "exact_ms": 1000 * min(before for before, _ in pairs),
        "difference": float(np.abs(resized(blob, exact).astype(int) - resized(blob, reduced)).mean()),
    }


def crossed(config: ReducedConfig, files: list[Path]) -> dict[str, float]:
    """Mean test accuracy by what was trained on and what was scored on, and the mean of the seeds' differences."""
    from models.catalog import ModelConfig
    from models.features import FrozenBase
    from models.preprocess import Preprocess

    model, blobs = ModelConfig("mobilenet_v2", weights=config.weights), [file.read_bytes() for file in files]
    labels = np.array([file.parent.name for file in files])
    features: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, how in (("exact", Resize(config.size, reduced=False)), ("reduced", Resize(config.size))):
            images = np.stack([resized(blob, how) for blob in blobs])
            base = FrozenBase(model, images, Preprocess.for_model(model.model, how), cache_dir=cache)
            features[name] = np.array(base.features())
    found: dict[str, list[float]] = {}
    for seed in range(config.seeds):
        shuffled = np.random.default_rng(seed).permutation(len(files))
        test, train = np.split(shuffled, [len(files) // 5])
        for learned, x in features.items():
            for scored, y in features.items():
                accuracy = probe_accuracy(x[train], labels[train], y[test], labels[test])
                found.setdefault(f"{learned}_to_{scored}", []).append(accuracy)
        print(f"seed {seed}: { ({name: round(values[-1], 3) for name, values in found.items()}) }", flush=True)
    differences = [b - a for a, b in zip(found["exact_to_exact"], found["reduced_to_reduced"], strict=True)]
    means = {name: statistics.mean(values) for name, values in found.items()}
    return {**means, "difference": statistics.mean(differences), "difference_sd": statistics.stdev(differences)}


def main() -> int:
    config = tyro.cli(ReducedConfig, description=__doc__)
    prepare_environment()
    files = sorted(path for path in config.pictures.rglob("*.jp*g"))
    mixed = [files[place] for place in np.random.default_rng(0).permutation(len(files))]
    gains = {}
    for (width, height), size in _SHAPES:
        found = gain(photograph(mixed, width, height), size, config.rounds)
        gains[f"{width}x{height}_to_{size}"] = found
        print(f"{width}x{height} to {size}: { ({name: round(value, 2) for name, value in found.items()}) }", flush=True)
    say(gains=gains, accuracy=crossed(config, files) if config.weights else None, images=len(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
