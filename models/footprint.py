"""What a network costs to run: milliseconds for one image, megabytes of weights. Both before it is trained."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.catalog import ModelConfig, build_base, build_head, feature_count

_WARM_UP, _MEASURED = 3, 15


@dataclass(frozen=True)
class Footprint:
    """`latency_ms`: the shortest of 15 forward passes of one image, float32, on this process's CPU threads, pixels
    ready: what others on the machine add least to. To two digits; the rest is noise.
    `size_mb`: weights and buffers in megabytes (10^6 bytes)."""

    latency_ms: float
    size_mb: float


def footprint(config: ModelConfig, *, classes: int, image_size: int) -> Footprint:
    """Of the network that `config` describes. Weights are random: neither number depends on them."""
    config = config.resolved()
    base_ms, base_mb = _of_base(
        replace(config, dense_units=1, dropout=0.0, weights="none", base="finetune"), image_size
    )
    head = build_head(config, classes=classes, image_size=image_size)
    head_ms = _milliseconds(head, torch.zeros(1, feature_count(config.model, image_size)))
    return Footprint(latency_ms=float(f"{base_ms + head_ms:.2g}"), size_mb=base_mb + _megabytes(head))


@functools.cache
def _of_base(config: ModelConfig, image_size: int) -> tuple[float, float]:
    """All trials of a process share it: they differ in their heads."""
    base = build_base(config, load_weights=False)
    image = torch.zeros(1, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    return _milliseconds(base, image), _megabytes(base)


def _milliseconds(module: nn.Module, inputs: Tensor) -> float:
    module.eval()
    with torch.inference_mode():
        times = [_timed(module, inputs) for _ in range(_WARM_UP + _MEASURED)]
    return 1000 * min(times[_WARM_UP:])


def _timed(call: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    start = time.perf_counter()
    call(inputs)
    return time.perf_counter() - start


def _megabytes(module: nn.Module) -> float:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
