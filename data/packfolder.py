"""A pack on disk: believed only if its list of rows can be read and its pixels have exactly the size that follows."""

import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from data import cachefolder
from data.errors import UserError
from data.images import DECODER, Pixels
from data.resizing import Resize

PIXELS: Final = "pixels.u8"
META: Final = "pack.json"


@functools.lru_cache(maxsize=8)
def open_pack(folder: str) -> Pixels:
    """The pixels (N, H, W, 3) uint8, read-only, mapped: processes share the pages, and one process maps them once."""
    if (meta := _meta(folder)) is None:
        raise UserError(f"{folder}: the packed images are gone from the cache or damaged; run the command again")
    cachefolder.touch(folder)
    return _map(folder, meta)


def rows(folder: str) -> dict[str, int]:
    """sha256 -> row of a complete pack; empty where there is none, or a damaged one."""
    meta = _meta(folder)
    return {sha: row for row, sha in enumerate(meta["rows"])} if meta else {}


def write_meta(folder: str, shas: Sequence[str], how: Resize) -> None:
    """Say what the rows of the pack in `folder` are. May raise OSError: the disk may be full."""
    meta = {"resize": asdict(how), "decoder": DECODER, "rows": list(shas)}
    Path(folder, META).write_bytes(json.dumps(meta).encode())


def settle(built: str, target: str, shas: set[str]) -> None:
    """Move a finished build to its place, instead of a damaged pack there; a complete one there is kept."""
    while True:
        try:
            os.rename(built, target)
        except OSError:
            if not os.path.isdir(target):
                raise
            if shas <= rows(target).keys():  # the same images under another address were packed meanwhile
                shutil.rmtree(built)
                break
            damaged = os.path.join(os.path.dirname(target), f".damaged-{uuid.uuid4().hex}")
            os.rename(target, damaged)  # in one step: nobody sees half of it gone
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            break
    open_pack.cache_clear()  # a mapping of what lay there before may have its rows in another order


def older(cache_dir: str, how: Resize) -> dict[str, tuple[Pixels, int]]:
    """sha256 -> (pixels, row) over the packs made in the same way: a few new images do not decode all others again.

    Does not count as use of those packs: what is superseded should be evicted first.
    """
    found: dict[str, tuple[Pixels, int]] = {}
    for path in Path(cache_dir, "packs").glob(f"[!.]*/{META}"):
        meta = _meta(str(path.parent))
        if meta is None or meta["resize"] != asdict(how) or meta["decoder"] != DECODER:
            continue
        try:
            pixels = _map(str(path.parent), meta)
        except (OSError, ValueError):  # evicted while we look
            continue
        found.update((sha, (pixels, row)) for row, sha in enumerate(meta["rows"]))
    return found


def place(cache_dir: str, shas: set[str], how: Resize) -> str:
    """The folder of the pack of these contents."""
    return os.path.join(cache_dir, "packs", digest([how, DECODER, *sorted(shas)]))


def digest(parts: Sequence[object]) -> str:
    """A name for these parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def stride(how: Resize) -> int:
    """Bytes of one image."""
    return how.size * how.size * 3


def _meta(folder: str) -> dict[str, Any] | None:
    try:
        meta = json.loads(Path(folder, META).read_bytes())
        size = len(meta["rows"]) * stride(Resize(**meta["resize"]))
        whole = bool(meta["rows"]) and all(isinstance(sha, str) for sha in meta["rows"]) and "decoder" in meta
        return meta if whole and os.path.getsize(os.path.join(folder, PIXELS)) == size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(folder: str, meta: dict[str, Any]) -> Pixels:
    size = int(meta["resize"]["size"])
    pixels: Pixels = np.memmap(os.path.join(folder, PIXELS), np.uint8, "r", shape=(len(meta["rows"]), size, size, 3))
    return pixels
