"""Draws one frame of a generated dive: sea floor, stones, creatures, light, water, marine snow. Integers only.

Pictures are int64 arrays (H, W, 3) of 0-255 while they are drawn. A floor lies in world coordinates that the vehicle
moves over, so that frames seconds apart show partly the same floor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from data.images import Pixels
from data.integers import TURN, Ints, Random, cos256, hash64, lattice, noise, sin256

WIDTH: Final = 96
HEIGHT: Final = 72
_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.int64)
_WORLD: Final = 1 << 20  # far from the edge of the world: coordinates stay positive
Colour = tuple[int, int, int]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Floor:
    """What is the same in all frames of a dive, and betrays the dive."""

    seed: int
    dark: Colour
    light: Colour
    grain: int
    """Smallest lattice of the texture, in bits."""
    ripple: int
    """Height of the sand ripples; 0 is none."""
    ripple_turn: int
    stones: int
    """Of 256 cells, how many hold a stone."""
    stone_tint: Colour
    """What a stone's colour adds to the ground's. Overgrown, as bright as an animal, they can only be told apart by who
    knows the dive: this, more than the floor itself, is what makes a new dive harder."""
    shells: int
    water: Colour
    haze: int
    """Share of the water's colour, of 256."""
    lamp_x: int
    lamp_y: int
    falloff: int
    snow: int
    """Flakes of marine snow in a frame."""

    @classmethod
    def make(cls, seed: int, stone_tint: Colour) -> "Floor":
        random = Random(seed, 1)
        base = random.choice(_GROUNDS)
        shade = random.between(-18, 18)
        dark = _colour(random, base, shade - random.between(14, 34), 10)
        light = _colour(random, base, shade + random.between(14, 34), 10)
        red, green, blue = (part * random.between(55, 95) // 3 for part in stone_tint)
        return cls(
            seed=seed,
            dark=dark,
            light=light,
            grain=random.between(1, 3),
            ripple=random.choice((0, 0, 12, 24, 36)),
            ripple_turn=random.below(TURN // 2),
            stones=random.choice((20, 40, 60, 80)),
            stone_tint=(red, green, blue),
            shells=random.choice((0, 10, 20, 40)),
            water=_colour(random, random.choice(((10, 45, 75), (12, 60, 62), (22, 52, 44))), 0, 12),
            haze=random.between(5, 45),
            lamp_x=random.between(WIDTH // 4, 3 * WIDTH // 4),
            lamp_y=random.between(HEIGHT // 3, HEIGHT),
            falloff=random.between(40, 110),
            snow=random.between(4, 20),
        )


_GROUNDS: Final = ((150, 138, 112), (112, 116, 108), (96, 82, 66), (128, 142, 136), (84, 92, 104), (158, 148, 140))


PLAIN: Final[Colour] = (0, 0, 0)
TINTS: Final[tuple[Colour, ...]] = (
    *((3, 0, -2), (3, 2, -1), (3, 3, 2), (3, -1, -1)),
    *((-2, -2, -2), (-2, 1, 3), (2, -2, 2)),
)
"""Directions in which animals, and in some dives stones, depart from the floor: warm, pale, dark, cold."""


@dataclass(frozen=True)
class Creature:
    """One animal: kind, size in pixels, heading in 64ths of a turn, colour, how far it is see-through (of 256)."""

    kind: str
    size: int
    turn: int
    colour: Colour
    clear: int
    seed: int


def draw(floor: Floor, offset: tuple[int, int], creatures: list[tuple[Creature, int, int]], seed: int) -> Pixels:
    """One frame, RGB uint8 (HEIGHT, WIDTH, 3): the floor at `offset`, and creatures each with its place (x, y)."""
    x, y = _X + (_WORLD + offset[0]), _Y + (_WORLD + offset[1])
    picture = _ground(floor, x, y)
    _scatter(picture, floor, x, y, bits=5, share=floor.stones, salt=2)
    _scatter(picture, floor, x, y, bits=3, share=floor.shells, salt=3)
    for creature, left, top in creatures:
        _paint(picture, creature, left, top)
    return _through_water(picture, floor, seed)


def _ground(floor: Floor, x: Ints, y: Ints) -> Ints:
    height = noise(hash64(floor.seed, 10), x, y, 5) * 3 + noise(hash64(floor.seed, 11), x, y, floor.grain + 1) * 2
    height += noise(hash64(floor.seed, 12), x, y, floor.grain)
    height //= 6
    if floor.ripple:
        along = (x * cos256(floor.ripple_turn) + y * sin256(floor.ripple_turn) + height * 64) >> 8
        height += (np.abs((along % 14) - 7) - 3) * floor.ripple // 4
    height = np.clip(height, 0, 255)[..., None]
    ground: Ints = (np.array(floor.dark) * (255 - height) + np.array(floor.light) * height) // 255
    return ground


def _scatter(picture: Ints, floor: Floor, x: Ints, y: Ints, *, bits: int, share: int, salt: int) -> None:
    """Stones (large cells) or shells (small cells): a blob in some cells of the world, the same for every frame."""
    size = 1 << bits
    cell_x, cell_y = x >> bits, y >> bits
    here = lattice(hash64(floor.seed, salt), cell_x, cell_y) < share
    tone = lattice(hash64(floor.seed, salt, 1), cell_x, cell_y)
    radius = size // 6 + lattice(hash64(floor.seed, salt, 2), cell_x, cell_y) * size // 1024
    flat = 2 + lattice(hash64(floor.seed, salt, 3), cell_x, cell_y) // 64
    wobble = noise(hash64(floor.seed, salt, 4), x, y, max(1, bits - 2)) // 64
    from_x, from_y = (x & (size - 1)) - size // 2, (y & (size - 1)) - size // 2
    inside = here & (from_x * from_x * 2 + from_y * from_y * flat < 2 * radius * radius + wobble * size // 4)
    shift = (tone - 128) * (70 if salt == 2 else 110) // 128 - from_y * 40 // size
    tint = floor.stone_tint if salt == 2 else (0, 0, 0)
    picture[inside] += shift[inside][:, None] + np.array(tint)


def _paint(picture: Ints, creature: Creature, left: int, top: int) -> None:
    across, down = _X - left, _Y - top
    along = (across * cos256(creature.turn) + down * sin256(creature.turn)) >> 4  # in 16ths of a pixel
    aside = (down * cos256(creature.turn) - across * sin256(creature.turn)) >> 4
    body = SHAPES[creature.kind](along, aside, creature.size * 16)
    shadow = np.roll(body, (2, 1), axis=(0, 1)) & ~body
    picture[shadow] = picture[shadow] * 210 // 256
    pattern = (noise(creature.seed, _X - left + 4096, _Y - top + 4096, 2) - 128) * 30 // 128
    colour = np.array(creature.colour) + (pattern - down * 30 // max(4, creature.size))[..., None]
    picture[body] = (picture[body] * creature.clear + colour[body] * (256 - creature.clear)) // 256


def _through_water(picture: Ints, floor: Floor, seed: int) -> Pixels:
    random = Random(seed, 5)
    flicker = random.between(-8, 8)
    squared = (_X - floor.lamp_x) ** 2 + (_Y - floor.lamp_y) ** 2
    lit = 330 + flicker - np.minimum(squared * floor.falloff // (WIDTH * HEIGHT // 3), 200)
    seen = picture * lit[..., None] // 256
    far = np.minimum(floor.haze + (HEIGHT - _Y) * floor.haze // (2 * HEIGHT), 220)[..., None]
    seen = (seen * (256 - far) + np.array(floor.water) * far) // 256
    for _ in range(floor.snow):
        x, y, bright = random.below(WIDTH), random.below(HEIGHT), random.between(20, 110)
        wide = random.below(3) // 2
        seen[y : y + 1 + wide, x : x + 1 + wide] += bright
    seen += (lattice(hash64(seed, 6), _X, _Y) - 128)[..., None] * 7 // 128
    frame: Pixels = np.clip(seen, 0, 255).astype(np.uint8)
    return frame


def _ellipse(along: Ints, aside: Ints, long: int, wide: int) -> Mask:
    inside: Mask = along * along * (wide * wide) + aside * aside * (long * long) < long * long * wide * wide
    return inside


def _fish(along: Ints, aside: Ints, size: int) -> Mask:
    tail = (along < -size * 5 // 8) & (along > -size * 9 // 8) & (np.abs(aside) * 2 < -along - size * 3 // 8)
    return _ellipse(along, aside, size * 7 // 8, size * 3 // 8) | tail


def _eel(along: Ints, aside: Ints, size: int) -> Mask:
    wave = np.abs(along % size - size // 2) - size // 4
    inside: Mask = (np.abs(aside - wave) < size // 6) & (np.abs(along) < size * 3 // 2)
    return inside


def _star(along: Ints, aside: Ints, size: int) -> Mask:
    body = _ellipse(along, aside, size // 4, size // 4)
    for step in (0, 13, 26, 38, 51):
        out = (along * cos256(step) + aside * sin256(step)) >> 8
        side = (aside * cos256(step) - along * sin256(step)) >> 8
        body |= (out > 0) & (out < size) & (np.abs(side) * 5 < size - out + size // 8)
    return body


def _urchin(along: Ints, aside: Ints, size: int) -> Mask:
    spikes: Mask = (np.abs(along) < size // 12) | (np.abs(aside) < size // 12) | (np.abs(along - aside) < size // 9)
    spikes |= np.abs(along + aside) < size // 9
    return _ellipse(along, aside, size // 2, size // 2) | (spikes & _ellipse(along, aside, size, size))


def _jelly(along: Ints, aside: Ints, size: int) -> Mask:
    bell: Mask = _ellipse(along, aside, size * 3 // 4, size * 3 // 4) & (along > -size // 8)
    threads = (along <= 0) & (along > -size) & (np.abs(aside) < size * 5 // 8) & (aside % (size // 3) < size // 8)
    return bell | threads


def _coral(along: Ints, aside: Ints, size: int) -> Mask:
    body: Mask = (np.abs(aside) < size // 8) & (np.abs(along) < size)
    for start, sign in ((-size // 2, 1), (-size // 8, -1), (size // 4, 1)):
        out = along - start
        body |= (np.abs(aside - sign * out) < size // 6) & (out > 0) & (out < size * 5 // 8)
    return body


def _crab(along: Ints, aside: Ints, size: int) -> Mask:
    legs = (np.abs(along) % (size // 3) < size // 8) & (np.abs(aside) < size) & (np.abs(along) < size * 5 // 8)
    return _ellipse(along, aside, size * 5 // 8, size // 2) | legs


SHAPES: Final[dict[str, Callable[[Ints, Ints, int], Mask]]] = {
    "fish": _fish,
    "eel": _eel,
    "star": _star,
    "urchin": _urchin,
    "jelly": _jelly,
    "coral": _coral,
    "crab": _crab,
}
"""Kind -> which pixels its body covers; coordinates and size in 16ths of a pixel."""


def creature_colour(random: Random, floor: Floor, tint: Colour, contrast: int) -> Colour:
    """The floor's own colour moved by `contrast` towards a tint: on a floor of that tint, partly camouflaged."""
    middle = [(dark + light) // 2 for dark, light in zip(floor.dark, floor.light, strict=True)]
    red, green, blue = (v + contrast * part // 3 + random.between(-8, 8) for v, part in zip(middle, tint, strict=True))
    return red, green, blue


def _colour(random: Random, base: Colour, shift: int, spread: int) -> Colour:
    red, green, blue = (value + shift + random.between(-spread, spread) for value in base)
    return red, green, blue
