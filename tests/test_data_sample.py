"""The generated sample: the same pixels everywhere, names and gaps as in real video, and its traps."""

import ast
import hashlib
import inspect
import os
import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType

import numpy as np
import pytest

from data import integers, sample, seafloor
from data.collection import DataConfig, load_collection
from data.groups import parse_video_name

GOLDEN = "9a78d16538b8d5052144a6cf80a9dbbac85e189762c4e066185c9f1da46b35c2"


def digest(frames: list[sample.Frame]) -> str:
    """sha256 over names, labels and decoded pixels."""
    whole = hashlib.sha256()
    for frame in frames:
        whole.update(f"{frame.name}\0{frame.label}\0".encode() + frame.draw().tobytes())
    return whole.hexdigest()


def test_pixels_are_the_same_on_every_machine() -> None:
    """If this changes on purpose, count `sample.VERSION` up: scores on the old pixels do not compare with the new."""
    assert digest(list(sample.frames(0))[::24]) == GOLDEN


@pytest.mark.parametrize("module", [integers, seafloor, sample])
def test_no_floating_point_draws(module: ModuleType) -> None:
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), ast.dump(node)
        if isinstance(node, ast.BinOp | ast.AugAssign):
            assert not isinstance(node.op, ast.Div), f"{module.__name__}:{node.lineno}"


@pytest.mark.parametrize("seed", range(5))
def test_names_gaps_and_labels_are_those_of_real_video(seed: int) -> None:
    frames = list(sample.frames(seed))
    assert len({frame.name for frame in frames}) == 720
    parsed = [parse_video_name(frame.name) for frame in frames]
    videos: dict[str, list[int]] = {}
    for found in parsed:
        assert found is not None
        videos.setdefault(found.video, []).append(found.frame)
    assert [len(numbers) for numbers in videos.values()] == [60] * 12
    gaps = [(b - a) / 30 for numbers in videos.values() for a, b in pairwise(numbers)]
    assert min(gaps) == 1
    assert max(gaps) == 53
    assert 9 <= median(gaps) <= 11
    labels = [frame.label for frame in frames]
    assert set(labels) == set(sample.CLASSES)
    rates = [labels[n : n + 60].count("interesting") for n in range(0, 720, 60)]
    assert len(set(rates)) > 8  # each dive has its own
    assert all(6 <= rate <= 54 for rate in rates)
    assert all(bool(frame.creatures) == (frame.label == "interesting") for frame in frames)


def test_every_creature_shows() -> None:
    for frame in list(sample.frames(1))[::5]:
        if frame.creatures:
            bare = seafloor.draw(frame.floor, frame.offset, [], frame.seed).astype(int)
            changed = np.abs(frame.draw().astype(int) - bare).max(axis=2) > 8
            assert changed.sum() > 12, frame.name


def test_neighbours_resemble_each_other_and_dives_do_not() -> None:
    frames = list(sample.frames(0))
    pictures = {n: frames[n].draw().astype(int) for n in range(720) if n % 60 in (0, 1)}
    means = {n: picture.mean(axis=(0, 1)) for n, picture in pictures.items()}
    inside = [np.abs(means[n] - means[n + 1]).mean() for n in range(0, 720, 60)]
    between = [np.abs(means[n] - means[(n + 60) % 720]).mean() for n in range(0, 720, 60)]
    assert np.mean(inside) < np.mean(between) / 3


def test_seeds_differ() -> None:
    assert digest(list(sample.frames(0))[:2]) != digest(list(sample.frames(1))[:2])


def test_it_is_drawn_once_and_mended(tmp_path: Path) -> None:
    table = sample.ensure(str(tmp_path), 3)
    before = os.stat(table).st_mtime_ns
    assert sample.ensure(str(tmp_path), 3) == table
    assert os.stat(table).st_mtime_ns == before
    frames = Path(table).parent / "frames"
    lost = sorted(frames.iterdir())[100]
    bytes_of_lost = lost.read_bytes()
    lost.unlink()
    assert sample.ensure(str(tmp_path), 3) == table
    assert lost.read_bytes() == bytes_of_lost
    assert sorted(os.listdir(tmp_path / "sample")) == [".lock-3", Path(table).parent.name]


def test_it_loads_like_any_other_set(cache_dir: str) -> None:
    got = load_collection(DataConfig(cache_dir=cache_dir))
    assert got.generated
    assert got.images().shape == (720, 64, 64, 3)
    assert got.classes == ("interesting", "not_interesting")
    assert got.grouping == "Grouped by the video in the file names: 12 groups."
    assert len(got.problems) == 0
    assert got.table.groupby("group")["split"].nunique().max() == 1
    assert Counter(got.table.drop_duplicates("group")["split"]) == {"train": 8, "validation": 2, "test": 2}
    assert got.table["frame"].notna().all()


def test_random_numbers_are_spread_evenly() -> None:
    random = integers.Random(1, 2)
    counts = Counter(random.below(10) for _ in range(10_000))
    assert all(850 < counts[n] < 1150 for n in range(10))
    assert sorted(random.shuffled(range(50))) == list(range(50))
    y, x = np.mgrid[0:64, 0:64].astype(np.int64)
    values = integers.lattice(7, x, y)
    assert values.min() >= 0
    assert values.max() <= 255
    assert 120 < values.mean() < 135
    smooth = integers.noise(7, x, y, 4)
    assert np.abs(np.diff(smooth, axis=1)).max() < 40
    assert smooth.min() >= 0
    assert smooth.max() <= 255


def test_sine_and_cosine() -> None:
    for step in range(-64, 128):
        assert abs(integers.sin256(step) - 256 * np.sin(step * np.pi / 32)) <= 0.51
        assert abs(integers.cos256(step) - 256 * np.cos(step * np.pi / 32)) <= 0.51


def test_a_new_dive_is_harder_than_a_known_one(cache_dir: str) -> None:
    """One sample seed and few splits, to stay affordable; `benchmarks/sample_gap.py` measures seeds 0 to 4."""
    measure = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "sample_gap.py"))["measure"]
    gap = measure(0, new_splits=2, known_splits=1, epochs=8, cache_dir=cache_dir)
    assert gap.majority < gap.new < 0.95
    assert gap.known >= gap.new + 0.1
