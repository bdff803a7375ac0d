"""Which memory layout a network trains faster in on this processor: timed once, kept in the cache, repeated after."""

import copy
import hashlib
import json
import logging
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from filelock import FileLock
from torch import Tensor, nn

from data import cachefolder
from models.batches import World
from models.preprocess import Preprocess

log = logging.getLogger(__name__)

# The same function in both, but for the order of its sums. bfloat16 is no candidate: it is other mathematics, and on
# CPUs without matrix units for it measured slower as well.
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_BUDGET_S = 0.8  # of CPU time; a network whose first steps take longer is judged by those
_ROUNDS = 3
# What is faster by less is noise, and predictions are made in channels_last.
_CLEARLY = 0.9


def layout_for(
    network: nn.Module,
    model: str,
    preprocess: Preprocess,
    *,
    batch_size: int,
    world: World,
    device: torch.device,
    cache_dir: str = "",
) -> torch.memory_format:
    """The layout to train `network` (images -> logits, on `device`) in: channels last but where a short trial on this
    processor clearly says otherwise. The same on all workers: rank 0's.

    `model` is the name of its architecture, `batch_size` that of this worker. A network met before, by whichever trial,
    is not timed again. Neither `network` nor torch's global generator is changed.
    """
    if device.type != "cpu":  # tensor cores want it so
        return torch.channels_last
    name = _chosen(network, model, preprocess, batch_size, cache_dir) if world.rank == 0 else ""
    if world.size > 1:
        # Gradients are averaged as logical tensors, so ranks may differ without harm; but no two runs should.
        index = torch.tensor(list(_LAYOUTS).index(name) if name else 0)
        torch.distributed.broadcast(index, src=0)
        name = list(_LAYOUTS)[int(index)]
    return _LAYOUTS[name]


def processor() -> str:
    """The processor's model name, or what the system tells of it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # no Linux
        found = None
    return found[1].strip() if found else f"{platform.machine()} {platform.processor()}".strip()


def _chosen(network: nn.Module, model: str, preprocess: Preprocess, batch_size: int, cache_dir: str) -> str:
    """The kept choice, or a new one, made while others wait for its lock."""
    key = {
        "processor": processor(),
        "torch": torch.__version__,
        "network": model,
        "image_size": preprocess.resize.size,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
    }
    folder = Path(cachefolder.resolve(cache_dir)) / "probes"  # a few bytes each, so the cache never evicts them
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{digest}.lock"):
            path = folder / f"{digest}.json"
            name = _read(path)
            if name is None:
                seconds = _measure(network, preprocess, batch_size)
                name = "contiguous" if seconds["contiguous"] < _CLEARLY * seconds["channels_last"] else "channels_last"
                log.info("%s trains in %s here: %s", model, name, seconds)
                _write(path, {**key, "layout": name, "seconds_per_step": seconds})
            return name
    except OSError:  # a cache that is full or not ours to write: a choice that cannot be repeated is not made
        return "channels_last"


def _read(path: Path) -> str | None:
    try:
        name = json.loads(path.read_text())["layout"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if name in _LAYOUTS else None


def _write(path: Path, content: dict[str, Any]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=2)
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _measure(network: nn.Module, preprocess: Preprocess, batch_size: int) -> dict[str, float]:
    """CPU seconds of a training step in each layout, on as many of `batch_size` images as the budget allows."""
    networks = {name: copy.deepcopy(network).to(memory_format=layout) for name, layout in _LAYOUTS.items()}
    size = preprocess.resize.size
    with torch.random.fork_rng(devices=[]):  # dropout draws
        pixels = torch.randint(256, (2, size, size, 3), dtype=torch.uint8)
        # The first steps also set the kernels up, and count only where there is no time for others.
        best = {name: _step(networks[name], preprocess, pixels, layout) for name, layout in _LAYOUTS.items()}
        left = _BUDGET_S - sum(best.values())
        if left <= 0:
            return best
        count = max(2, min(batch_size, int(2 * left / (_ROUNDS * sum(best.values())))))
        pixels = torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
        best = dict.fromkeys(_LAYOUTS, float("inf"))
        for _ in range(_ROUNDS):  # by turns, and the least of each: others are at work on this machine
            for name, layout in _LAYOUTS.items():
                best[name] = min(best[name], _step(networks[name], preprocess, pixels, layout))
    return best


def _step(network: nn.Module, preprocess: Preprocess, pixels: Tensor, layout: torch.memory_format) -> float:
    """CPU seconds of one step, from bytes to gradients; the optimiser's part is the same in any layout."""
    start = time.process_time()
    network.train()
    network.zero_grad(set_to_none=True)
    network(preprocess.normalise_(preprocess.to_unit(pixels, layout=layout))).logsumexp(dim=1).sum().backward()
    return time.process_time() - start
