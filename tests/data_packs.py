"""What the tests of the pack share: a folder of images, a build of it, and what the build reads."""

import os
from pathlib import Path

import numpy as np
import pytest

from data import pack, store
from data.images import Failure
from data.resizing import Resize
from tests.images_zoo import encoded

HOW = Resize(16)


def write_root(folder: Path) -> Path:
    """Twenty images, one of them twice, and one that is none."""
    for n in range(20):
        pixels = np.random.default_rng(n).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        store.write(str(folder / f"{n:02}.png"), encoded(pixels))
    store.write(str(folder / "20.png"), (folder / "00.png").read_bytes())
    store.write(str(folder / "21.png"), b"text")
    return folder


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read, as they are read."""
    seen: list[str] = []
    read = store.try_read

    def watched(entry: store.Entry, **options: str | None) -> bytes | Failure:
        seen.append(os.path.basename(entry.path))
        return read(entry, **options)

    monkeypatch.setattr(store, "try_read", watched)
    return seen


def build(root: Path | str, cache: Path | str, how: Resize = HOW) -> pack.Packed:
    return pack.build(store.list_files(str(root)), how, cache_dir=str(cache), scope=str(root))


def packs(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "packs").iterdir() if not p.name.startswith(".lock"))


# Builds as a program of its own, counts the images it has put on its output, and stops after so many.
SLOW = """
import sys, time
from data import pack, store
from data.images import Resize
put, count = pack._Build._put, 0
def slow(self, *rest):
    global count
    put(self, *rest)
    count += 1
    print(count, flush=True)
    if count >= int(sys.argv[3]):
        time.sleep(600)
pack._Build._put = slow
pack.build(store.list_files(sys.argv[1]), Resize(16), cache_dir=sys.argv[2], scope=sys.argv[1])
"""
