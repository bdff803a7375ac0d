"""The generated sample: twelve dives of an underwater vehicle, sixty labelled frames each. Not photographs.

It stands in for data that cannot be shipped, and has its traps: every dive has its own floor, light, water and rate of
interesting frames, and frames seconds apart resemble each other. Split by image, a network seems to know every dive.
"""

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from filelock import FileLock

from data import seafloor, store
from data.images import Pixels, encode_png
from data.integers import Random, hash64
from data.parallel import ordered_map
from data.seafloor import HEIGHT, WIDTH, Colour, Creature, Floor

VERSION: Final = 2
"""Counts up whenever a pixel changes: old samples in a cache are then left alone, and scores are not compared."""
DIVES: Final = 12
FRAMES: Final = 60
CLASSES: Final = ("interesting", "not_interesting")
_FPS: Final = 30
# Seconds between labelled frames, 1 to 53 with median 10, as in hand-labelled NOAA video.
_GAPS: Final = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11, 12, 14, 16, 19, 23, 28, 36, 53)
# Grey levels between an animal and its floor, and an animal's size in pixels. Found by `benchmarks/sample_gap.py`: with
# less the network learns too little even of known dives in twelve epochs, with more it finds animals on any floor.
_CONTRAST: Final = (89, 129)
_SIZES: Final = (13, 23)
# Percent of interesting frames, dealt to the dives.
_RATES: Final = (30, 35, 40, 45, 50, 50, 55, 55, 60, 65, 70, 75)


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
    # Dealt like cards rather than drawn one by one, so that all seeds are about equally hard.
    stones = random.shuffled((*random.shuffled(seafloor.TINTS)[: DIVES // 2], *(seafloor.PLAIN,) * (DIVES // 2)))
    animals = [tint for _ in range(DIVES) for tint in random.shuffled(seafloor.TINTS)]
    for dive in range(DIVES):
        yield from _dive(seed, dive, rates[dive], stones[dive], animals[2 * dive : 2 * dive + 2])


def ensure(cache_dir: str, seed: int) -> str:
    """The path of the sample's table (path, label) in the cache, drawn first if it is not there whole."""
    folder = os.path.join(cache_dir, "sample", f"v{VERSION}-seed{seed}")
    if _whole(folder):
        return os.path.join(folder, "labels.csv")
    making = f"{folder}.making"
    with store.explained(folder):
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with FileLock(os.path.join(cache_dir, "sample", f".lock-{seed}")):
            if not _whole(folder):  # another process may have drawn it while we waited
                for remains in (making, folder):  # of a killed process; or somebody deleted frames
                    shutil.rmtree(remains, ignore_errors=True)
                _write(making, seed)
                os.replace(making, folder)
    return os.path.join(folder, "labels.csv")


def _whole(folder: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return len(os.listdir(os.path.join(folder, "frames"))) == DIVES * FRAMES
    return False


def _write(folder: str, seed: int) -> None:
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(("path", "label"))
    os.makedirs(os.path.join(folder, "frames"))

    def one(frame: Frame) -> Frame:
        with open(os.path.join(folder, "frames", frame.name), "wb") as file:
            file.write(encode_png(frame.draw()))
        return frame

    for frame in ordered_map(one, frames(seed), os.cpu_count() or 2):
        writer.writerow((f"frames/{frame.name}", frame.label))
    store.write(os.path.join(folder, "labels.csv"), rows.getvalue().encode())


def _dive(seed: int, number: int, rate: int, stone: Colour, tints: list[Colour]) -> Iterator[Frame]:
    dive = hash64(seed, number)
    random = Random(dive, 2)
    floor = Floor.make(dive, stone)
    kinds = random.shuffled(tuple(seafloor.SHAPES))[:4]
    contrast = random.between(*_CONTRAST)
    camera = 56_321_000 + random.below(1000)
    start = f"2017{9 + number // 6:02}{10 + number % 6 * 3:02}T{random.between(14, 21):02}{random.below(12) * 5:02}00Z"
    course = random.choice((-1, 1))
    second = random.between(5, 120)
    x = y = 0
    seen: tuple[tuple[Creature, int, int], ...] = ()
    before: bool | None = None
    for present in _presence(random, rate):
        gap = random.choice(_GAPS)
        second += gap
        # The pilot hovers over a find, and drifts along where there is none; in between the vehicle moves on.
        x, y = x + course * gap // 12, y + (0 if present else gap // 8)
        if present is not before:
            x, y, before = x + course * random.between(20, 60), y + random.between(40, 80), present
        if not present:
            seen = ()
        elif seen:
            seen = _moved(random, seen)
        else:
            seen = _arrive(random, floor, kinds, tints, contrast)
        name = f"{camera}_EX17{7 + number // 3:02}_VID_{start}_ROVHD.mp4_{second * _FPS}.png"
        yield Frame(name, CLASSES[0 if present else 1], floor, (x, y), seen, random.below(1 << 30))


def _presence(random: Random, rate: int) -> list[bool]:
    """Sixty frames of which `rate` % show a creature, in runs: what is there stays a while."""
    wanted = FRAMES * rate // 100
    runs = min(random.between(7, 10), wanted, FRAMES - wanted)
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


def _arrive(
    random: Random, floor: Floor, kinds: list[str], tints: list[Colour], contrast: int
) -> tuple[tuple[Creature, int, int], ...]:
    return tuple(
        (
            Creature(
                kind=random.choice(kinds),
                size=random.between(*_SIZES),
                turn=random.below(64),
                colour=seafloor.creature_colour(random, floor, random.choice(tints), contrast),
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
            min(max(x + random.between(-3, 3), 10), WIDTH - 11),
            min(max(y + random.between(-3, 3), 8), HEIGHT - 9),
        )
        for creature, x, y in seen
    )
