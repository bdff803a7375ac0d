"""The fastest way through a network that learns no more: a torch module in, a function from images to outputs out."""

import os
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

EngineName = Literal["torch", "onnxruntime"]
Forward = Callable[[Tensor], Tensor]
"""float32 (B, 3, H, W), normalised -> float32 (B, F), both on the engine's device."""


def fastest(device: torch.device) -> EngineName:
    """The engine for `device`. Engines agree within 1e-4 of the largest output of a batch; they differ by about 1e-6.

    On a CPU ONNX Runtime, measured against torch eager and frozen, and against OpenVINO (benchmarks/README.md):
    OpenVINO alone came near, and was no faster where batches are small.
    """
    return "onnxruntime" if device.type == "cpu" else "torch"


def load(name: EngineName, network: nn.Module, device: torch.device) -> Forward:
    """`network` behind the engine `name`. It is put into eval mode; weights that change later may or may not be seen.

    On a CPU the engine takes as many threads as torch has now.
    """
    network = network.eval()
    return _onnxruntime(network) if name == "onnxruntime" else _torch(network.to(device))


def best_batch(name: EngineName) -> int:
    """Images to give at a time where nothing else decides it.

    ONNX Runtime on a CPU gains nothing from more, and loses a quarter at 32: the activations of four images of 224
    pixels stay in a core's cache.
    """
    return 4 if name == "onnxruntime" else 32


def layout(name: EngineName) -> torch.memory_format:
    """How images are laid out best in memory for an engine; the other way costs a copy."""
    return torch.contiguous_format if name == "onnxruntime" else torch.channels_last


def _torch(network: nn.Module) -> Forward:
    @torch.inference_mode()
    def forward(images: Tensor) -> Tensor:
        outputs: Tensor = network(images)
        return outputs

    return forward


def _onnxruntime(network: nn.Module) -> Forward:
    # The library reports its use over the network, from its first import on, unless it is told not to before.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Imported here, since most processes that train never need them.
    import onnxruntime

    from models.onnxgraph import INPUT, OUTPUT, to_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait for work would otherwise keep their core busy, and there are other trials that could use it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(to_onnx(network), options, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        (outputs,) = session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(outputs)

    return forward
