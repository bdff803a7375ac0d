"""The features of a frozen base, computed once per image and shared by all trials, splits and workers of a node."""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from data import cachefolder
from data.errors import UserError
from models import engine, weights
from models.augment import Strength, draw_view
from models.catalog import ModelConfig, build_base, feature_count
from models.preprocess import Preprocess
from models.sources import Images

log = logging.getLogger(__name__)

_FORMAT = 2  # raise it when the pass itself changes, so that old files are not taken for new ones

Array = np.ndarray[Any, np.dtype[Any]]


def content_key(images: Array) -> str:
    """What tells one pack from another: a memory map's file (its folder, size and time), or a plain array's bytes."""
    digest = hashlib.sha256(f"{images.shape} {images.dtype} ".encode())
    if isinstance(images, np.memmap) and images.filename:
        status = os.stat(images.filename)
        # A pack's folder is named by its content, so the cache as a whole may be moved.
        digest.update(f"{Path(images.filename).parent.name} {status.st_size} {status.st_mtime_ns}".encode())
    else:
        digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


class FrozenBase:
    """A base that learns nothing, over one pack, and the files in which its features are kept.

    Files are named by the weights, the preprocessing, the engine and the pack. The first process computes while others
    wait for its lock; a file appears whole or not at all. Features are float32 in read-only memory maps, and equal
    what the predictor computes within 1e-4 of the largest feature of the image, whichever engine either one has.
    """

    def __init__(
        self,
        config: ModelConfig,
        images: Array,
        preprocess: Preprocess,
        *,
        pack_key: str = "",
        device: str | torch.device = "cpu",
        cache_dir: str = "",
    ) -> None:
        self._config, self._images, self._preprocess = config, images, preprocess
        self._device, self._cache_dir = torch.device(device), cache_dir
        self._engine = engine.fastest(self._device)
        base_key = weights.identity(weights.read(config.model, config.source, cache_dir))
        self._parts = [_FORMAT, config.model, base_key, preprocess.as_dict(), self._engine]
        self._parts.append(pack_key or content_key(images))

    def features(self) -> Array:
        """(N, F): every row of the pack, so that one pass serves every split of it. UserError if the disk is full."""
        found = self._kept(np.arange(len(self._images)), "off", 0, wait=True)
        assert found is not None
        return found

    def views(self, rows: Array, strength: Strength, count: int) -> list[Array]:
        """`count` arrays (len(rows), F): these rows of the pack, augmented in `count` ways which depend on nothing but
        view and row. UserError if the disk is full."""
        kept: dict[int, Array] = {}
        # Trials start together: each takes up what no other is at, and waits only for what is left.
        for wait in (False, True):
            for view in range(count):
                if view not in kept and (found := self._kept(rows, strength, view, wait=wait)) is not None:
                    kept[view] = found
        return [kept[view] for view in range(count)]

    @functools.cached_property
    def _forward(self) -> engine.Forward:
        return engine.load(self._engine, build_base(self._config, cache_dir=self._cache_dir), self._device)

    def _kept(self, rows: Array, strength: Strength, view: int, *, wait: bool) -> Array | None:
        """The features out of their file, computed if there is none. None if another is at it and not `wait`."""
        parts = self._parts
        if strength != "off":
            parts = [*parts, strength, view, hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest()]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        folder = Path(cachefolder.resolve(self._cache_dir)) / "features"
        folder.mkdir(parents=True, exist_ok=True)
        path, shape = folder / f"{key}.npy", (len(rows), feature_count(self._config.model, self._images.shape[1]))
        with contextlib.suppress(Timeout), FileLock(folder / f"{key}.lock", timeout=-1 if wait else 0):
            kept = _open(path, shape)
            if kept is None:
                title = "features, once" if strength == "off" else f"features, view {view + 1}"
                log.info("%s: %d images through %s", title, len(rows), self._config.model)
                self._compute(path, shape, rows, strength, view, title)
                cachefolder.evict(self._cache_dir, keep=(str(path),))
                kept = _open(path, shape)
                assert kept is not None
            cachefolder.touch(str(path))
            return kept
        return None

    def _compute(
        self, path: Path, shape: tuple[int, int], rows: Array, strength: Strength, view: int, title: str
    ) -> None:
        """Write the file, whole or not at all."""
        draws = None if strength == "off" else draw_view(len(self._images), view)
        each, layout = engine.best_batch(self._engine), engine.layout(self._engine)
        source = Images(self._images, self._preprocess, self._device, strength, layout)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
                )
                for start in tqdm(range(0, len(rows), each), title, unit="batch", disable=None):
                    some = rows[start : start + each]
                    mine = None if draws is None else draws[torch.from_numpy(some)]
                    batch = source.batch(some, mine)
                    file.write(self._forward(batch).cpu().numpy().tobytes())
            os.replace(name, path)
        except BaseException as error:
            Path(name).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UserError(
                    f"no room for the features in {path.parent} (they need {4 * shape[0] * shape[1]:,} bytes); "
                    "free some space or give another --cache-dir"
                ) from error
            raise


def _open(path: Path, shape: tuple[int, int]) -> Array | None:
    try:
        features = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return features if features.shape == shape and features.dtype == np.float32 else None
