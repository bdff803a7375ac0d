"""The cache folder: packs, features, copies of S3 objects, samples. Bounded, and safe to delete."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from data.errors import UserError

KINDS: Final = ("packs", "features", "weights", "s3", "sample", "index")
"""What may be deleted and made or fetched again. Folders of runs under way lie here too, and are not among these."""
LIMIT_BYTES: Final = 50 * 2**30
"""How large the cache may grow: about five packs of 40,000 images at 224 pixels, with room for features and copies."""
IN_USE_SECONDS: Final = 24 * 3600
"""What was used this recently is not evicted: a search under way may open it again from a new worker."""


@dataclass(frozen=True)
class _Item:
    path: Path
    size: int
    used: float
    kind: str


def resolve(cache_dir: str) -> str:
    """The folder to use: the one given, made absolute, or the user's cache folder."""
    return os.path.abspath(os.path.expanduser(cache_dir)) if cache_dir else platformdirs.user_cache_dir("eagleray")


@contextlib.contextmanager
def usable(cache_dir: str) -> Iterator[None]:
    """Say that it is the cache folder which cannot be used, where something in it cannot be made."""
    try:
        yield
    except OSError as error:
        unusable = (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.EEXIST,
            errno.ENOTDIR,
            errno.ENAMETOOLONG,
            errno.ELOOP,
        )
        if error.errno not in unusable:
            raise
        what = f"{error.strerror}: {error.filename or cache_dir}"
        raise UserError(
            f"{cache_dir}: no cache can be kept there ({what}); give a writable folder to --cache-dir"
        ) from (error)


def usage(cache_dir: str) -> dict[str, int]:
    """Bytes on disk by kind ("packs", "features", "s3", …), for the report."""
    totals = dict.fromkeys(KINDS, 0)
    for item in _items(resolve(cache_dir)):
        totals[item.kind] += item.size
    return totals


def touch(path: str) -> None:
    """Note that a pack or feature folder is in use now. A read-only cache is no error."""
    with contextlib.suppress(OSError):
        os.utime(path)


def evict(cache_dir: str, *, limit: int = LIMIT_BYTES, keep: Collection[str] = ()) -> list[str]:
    """Delete what was used least recently until the cache is within `limit` bytes; returns the deleted paths.

    Never deletes `keep` (absolute paths), nor packs and features used within a day: those may be open elsewhere.
    """
    items = sorted(_items(resolve(cache_dir)), key=lambda item: item.used)
    excess = sum(item.size for item in items) - limit
    recent = time.time() - IN_USE_SECONDS
    gone = []
    for item in items:
        if excess <= 0:
            break
        if str(item.path) in keep or (item.kind != "s3" and item.used > recent):
            continue
        if item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)
        excess -= item.size
        gone.append(str(item.path))
    return gone


def _items(root: str) -> Iterator[_Item]:
    for kind in KINDS:
        for path in Path(root, kind).glob("*/*" if kind == "s3" else "*"):
            with contextlib.suppress(OSError):  # deleted by another process in between
                yield _Item(path, _disk_bytes(path), path.stat().st_mtime, kind)


def _disk_bytes(path: Path) -> int:
    """Blocks really used: a pack under way is a file with holes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)
