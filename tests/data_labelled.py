"""What the tests of labelled folders and CSVs share: small images where they belong, and what is loaded from them."""

from pathlib import Path

import numpy as np

from data import store
from data.collection import Collection, DataConfig, load_collection
from tests.images_zoo import encoded


def picture(number: int) -> bytes:
    """A small image like no other."""
    return encoded(np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8))


def put(root: Path, *names: str, start: int = 0) -> None:
    for number, name in enumerate(names):
        store.write(str(root / name), picture(start + number))


def load(data: Path | str, cache: Path, **options: str) -> Collection:
    return load_collection(DataConfig(data=str(data), image_size=8, cache_dir=str(cache), **options))  # type: ignore[arg-type]


def codes(collection: Collection) -> list[str]:
    return list(collection.problems["problem"])
