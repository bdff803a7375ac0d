"""The generated sample: twelve dives of an underwater vehicle, sixty labelled frames each. Not photographs.

It stands in for data that cannot be shipped, and has its traps: every dive has its own floor, light, water and rate of
interesting frames, and frames seconds apart resemble each other. Split by image, a network seems to know every dive.
"""

import csv
import functools
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from data import seafloor, store
from data.images import Pixels, encode_png
from data.integers import Random, hash64
from data.parallel import ordered_map
from data.seafloor import HEIGHT, WIDTH, Creature, Floor

VERSION: Final = 1
"""Counts up whenever a pixel changes: old samples in a cache are then left alone, and scores are not compared."""
DIVES: Final = 12
FRAMES: Final = 60
CLASSES: Final = ("interesting", "not_interesting")
_FPS: Final = 30
# Seconds between labelled frames, 1 to 53 with median 10, as in hand-labelled NOAA video.
_GAPS: Final = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11, 12, 14, 16, 19, 23, 28, 36, 53)
_CONTRAST: Final = (75, 115)
_SIZES: Final = (12, 22)
_RATES: Final = (20, 30, 40, 45, 50, 55, 60, 65, 70, 75, 80, 90)


@dataclass(frozen=True)
class Frame:
    """One frame of a dive: its file name, whether there is a creature, and how to draw it."""

    name: str
    label: str
    floor: Floor
    offset: tuple[int, int]
    creatures: tuple[tuple[Creature, int, int], ...]
    seed: int

    def draw(self) -> Pixels:
        """RGB uint8 (72, 96, 3)."""
        return seafloor.draw(self.floor, self.offset, list(self.creatures), self.seed)


def frames(seed: int) -> Iterator[Frame]:
    """All frames for a seed, dive by dive, in the order of time."""
    random = Random(seed, 0)
    rates = random.shuffled(_RATES)
    for dive in range(DIVES):
        yield from _dive(seed, dive, rates[dive])


def ensure(cache_dir: str, seed: int) -> str:
    """The path of the sample's table (path, label) in the cache, drawn first if it is not there whole."""
    folder = os.path.join(cache_dir, "sample", f"v{VERSION}-seed{seed}")
    table = os.path.join(folder, "labels.csv")
    if os.path.exists(table) and len(os.listdir(os.path.join(folder, "frames"))) == DIVES * FRAMES:
        return table
    making = f"{folder}.{uuid.uuid4().hex}"
    try:
        _write(making, seed)
        shutil.rmtree(folder, ignore_errors=True)  # there in part: somebody deleted frames
        os.replace(making, folder)
    except OSError:
        shutil.rmtree(making, ignore_errors=True)
        if not os.path.exists(table):  # else another process was faster
            raise
    return table


def _write(folder: str, seed: int) -> None:
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(("path", "label"))
    with store.explained(folder):
        os.makedirs(os.path.join(folder, "frames"))

        def one(frame: Frame) -> Frame:
            with open(os.path.join(folder, "frames", frame.name), "wb") as file:
                file.write(encode_png(frame.draw()))
            return frame

        for frame in ordered_map(one, frames(seed), os.cpu_count() or 2):
            writer.writerow((f"frames/{frame.name}", frame.label))
        store.write(os.path.join(folder, "labels.csv"), rows.getvalue().encode())


def _dive(seed: int, number: int, rate: int) -> Iterator[Frame]:
    dive = hash64(seed, number)
    random = Random(dive, 2)
    floor = Floor.make(dive)
    kinds = random.shuffled(tuple(seafloor.SHAPES))[:4]
    contrast = random.between(*_CONTRAST)
    camera = 56_321_000 + random.below(1000)
    start = f"2017{9 + number // 6:02}{10 + number % 6 * 3:02}T{random.between(14, 21):02}{random.below(12) * 5:02}00Z"
    speed = (random.between(-8, 8), random.between(3, 8))  # pixels in ten seconds
    second = random.between(5, 120)
    x = y = 0
    seen: tuple[tuple[Creature, int, int], ...] = ()
    for present in _presence(random, rate):
        gap = random.choice(_GAPS)
        second += gap
        x, y = x + speed[0] * gap // 10, y + speed[1] * gap // 10
        seen = (
            _moved(random, seen) if present and seen else (_arrive(random, floor, kinds, contrast) if present else ())
        )
        name = f"{camera}_EX17{7 + number // 3:02}_VID_{start}_ROVHD.mp4_{second * _FPS}.png"
        yield Frame(name, CLASSES[0 if present else 1], floor, (x, y), seen, random.below(1 << 30))


def _presence(random: Random, rate: int) -> list[bool]:
    """Sixty frames of which `rate` % show a creature, in runs: what is there stays a while."""
    wanted = FRAMES * rate // 100
    runs = min(random.between(8, 12), wanted, FRAMES - wanted)
    here, away = _parts(random, wanted, runs), _parts(random, FRAMES - wanted, runs)
    pairs = [[True] * long + [False] * short for long, short in zip(here, away, strict=True)]
    order = [present for pair in pairs for present in pair]
    return order if random.below(2) else order[::-1]


def _parts(random: Random, total: int, count: int) -> list[int]:
    """`total` as a sum of `count` numbers, each at least 1."""
    parts = [1] * count
    for _ in range(total - count):
        parts[random.below(count)] += 1
    return parts


def _arrive(random: Random, floor: Floor, kinds: list[str], contrast: int) -> tuple[tuple[Creature, int, int], ...]:
    return tuple(
        (
            Creature(
                kind=random.choice(kinds),
                size=random.between(*_SIZES),
                turn=random.below(64),
                colour=seafloor.creature_colour(random, floor, contrast),
                clear=random.choice((0, 0, 30, 60)),
                seed=random.below(1 << 30),
            ),
            random.between(14, WIDTH - 15),
            random.between(12, HEIGHT - 13),
        )
        for _ in range(random.choice((1, 1, 1, 2, 3)))
    )


def _moved(random: Random, seen: tuple[tuple[Creature, int, int], ...]) -> tuple[tuple[Creature, int, int], ...]:
    """The same creatures in the next frame: the vehicle keeps them in view."""
    return tuple(
        (
            creature,
            min(max(x + random.between(-9, 9), 10), WIDTH - 11),
            min(max(y + random.between(-7, 7), 8), HEIGHT - 9),
        )
        for creature, x, y in seen
    )


@functools.cache
def majority_rate(seed: int) -> float:
    """Share of the commoner label over the whole sample."""
    labels = [frame.label for frame in frames(seed)]
    return max(labels.count(label) for label in CLASSES) / len(labels)
