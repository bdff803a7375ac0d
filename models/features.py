"""The features of a frozen base, computed once per image and shared by all trials, splits and workers of a node."""

import errno
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from data import cachefolder
from data.errors import UserError
from models import weights
from models.catalog import ModelConfig, build_base, feature_count
from models.preprocess import Preprocess

log = logging.getLogger(__name__)

_FORMAT = 1  # raise it when the pass itself changes, so that old files are not taken for new ones
_BATCH = 32  # larger batches gain nothing on a CPU and cost memory

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


def frozen_features(
    config: ModelConfig,
    images: Array,
    preprocess: Preprocess,
    *,
    pack_key: str = "",
    device: str | torch.device = "cpu",
    cache_dir: str = "",
) -> Array:
    """float32 (N, F), read-only memory map: the base's output in eval mode for every row of `images` (N, H, W, 3).

    Every row of the pack, so that one pass serves every split of it. The first process computes while others wait for
    its lock; the file appears whole or not at all. UserError if the disk is full.
    """
    base_key = weights.identity(weights.read(config.model, config.source, cache_dir))
    parts = [_FORMAT, config.model, base_key, preprocess.as_dict(), pack_key or content_key(images)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(cachefolder.resolve(cache_dir)) / "features"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.npy"
    shape = (len(images), feature_count(config.model, images.shape[1]))
    with FileLock(folder / f"{key}.lock"):
        kept = _open(path, shape)
        if kept is None:
            log.info("computing the features of %d images once with %s", len(images), config.model)
            _compute(path, shape, config, images, preprocess, torch.device(device), cache_dir)
            cachefolder.evict(cache_dir, keep=(str(path),))
            kept = _open(path, shape)
            assert kept is not None
    cachefolder.touch(str(path))
    return kept


def _open(path: Path, shape: tuple[int, int]) -> Array | None:
    try:
        features = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return features if features.shape == shape and features.dtype == np.float32 else None


def _compute(
    path: Path,
    shape: tuple[int, int],
    config: ModelConfig,
    images: Array,
    preprocess: Preprocess,
    device: torch.device,
    cache_dir: str,
) -> None:
    base = build_base(config, cache_dir=cache_dir).to(device).eval()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file, torch.inference_mode():
            np.lib.format.write_array_header_1_0(
                file, {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
            )
            for start in tqdm(range(0, len(images), _BATCH), "features, once", unit="batch", disable=None):
                batch = preprocess.to_batch(np.array(images[start : start + _BATCH]), device)
                file.write(base(batch).cpu().numpy().tobytes())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"no room for the features in {path.parent} (they need {4 * shape[0] * shape[1]:,} bytes); "
                "free some space or give another --cache-dir"
            ) from error
        raise
