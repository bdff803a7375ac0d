"""Ways through a frozen backbone on a CPU, one thread: images per CPU second, and how far each is from torch.

    python benchmarks/engines.py --models mobilenet_v2 resnet18 resnet50
    uv run --with openvino benchmarks/engines.py

Each model has a process of its own, with the allocator settings that our commands give to their workers; in it the
engines take turns. OpenVINO is measured where it is installed. The last line is one JSON object: median rates by model,
batch and engine, and `onnxruntime_speedup` (over eager torch as it comes, best batch of each) by model.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
import tyro
from torch import Tensor, nn

from models import engine
from models.onnxgraph import to_onnx
from models.processes import prepare_environment

CPU = torch.device("cpu")


@dataclass(frozen=True)
class EnginesConfig:
    """What is measured."""

    models: tuple[str, ...] = ("mobilenet_v2", "resnet18", "resnet50")
    """torchvision's names."""
    batches: tuple[int, ...] = (4, 32)
    """Images at a time."""
    images: int = 96
    """Images in each measurement."""
    rounds: int = 5
    """Measurements of each engine, in turn."""
    child: bool = False
    """Used by the script itself: measure in this process."""


def ways(model: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each engine's way from images (B, 3, 224, 224) to features."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        made: nn.Module = torchvision.models.get_model(model, weights=None)
        setattr(made, "classifier" if model == "mobilenet_v2" else "fc", nn.Identity())
        return made.eval()

    last = engine.load("torch", network().to(memory_format=torch.channels_last), CPU)
    found = {
        "eager": engine.load("torch", network(), CPU),
        "channels_last": lambda images: last(images.contiguous(memory_format=torch.channels_last)),
        "onnxruntime": engine.load("onnxruntime", network(), CPU),
    }
    if importlib.util.find_spec("openvino"):
        found["openvino"] = _openvino(network())
    return found


def _openvino(network: nn.Module) -> Callable[[Tensor], Tensor]:
    import openvino

    core = openvino.Core()
    how = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(to_onnx(network)), "CPU", how)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


def measure(config: EnginesConfig, model: str) -> dict[str, Any]:
    """Median rate and distance from eager torch, by batch and engine."""
    torch.set_num_threads(1)
    found, answer = ways(model), dict[str, Any]()
    for batch in config.batches:
        images = torch.rand(batch, 3, 224, 224)
        plain = found["eager"](images)
        apart = {name: float((way(images) - plain).abs().max() / plain.abs().max()) for name, way in found.items()}
        rates: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(config.rounds):
            for name, way in found.items():
                start, times = time.process_time(), max(1, config.images // batch)
                for _ in range(times):
                    way(images)
                rates[name].append(times * batch / (time.process_time() - start))
        answer[str(batch)] = {name: {"rate": statistics.median(rates[name]), "apart": apart[name]} for name in found}
    return answer


def main() -> int:
    config = tyro.cli(EnginesConfig, description=__doc__)
    if config.child:
        print(json.dumps(measure(config, config.models[0])))
        return 0
    prepare_environment()
    results, speedups = dict[str, Any](), dict[str, float]()
    for model in config.models:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", "--models", model]
        done = subprocess.run(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True)
        results[model] = json.loads(done.stdout.splitlines()[-1])
        for batch, engines in results[model].items():
            row = "  ".join(f"{name} {found['rate']:6.1f} ({found['apart']:.0e})" for name, found in engines.items())
            print(f"{model:<13} batch {batch:>2}  {row}", flush=True)
        best = {
            name: max(batch[name]["rate"] for batch in results[model].values()) for name in ("eager", "onnxruntime")
        }
        speedups[model] = best["onnxruntime"] / best["eager"]
    print(json.dumps({"onnxruntime_speedup": speedups, "rates": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
