"""How much memory training takes, computed before a GPU is rented: on the meta device, where nothing is allocated."""

from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from models.catalog import ModelConfig, build_base, build_head, feature_count
from tune.cloud.facts import Needs
from tune.cloud.preflightsettings import Plan

GIB: Final = 2**30
# CUDA's context, cuDNN's and cuBLAS's workspaces, and what the allocator cannot use between its blocks.
_LIBRARIES: Final = 1.5 * GIB
_FLOAT32, _BFLOAT16 = 4, 2
# A class more or less changes nothing at this scale.
_CLASSES: Final = 1000
# Images that a frozen base sees at one time.
_FEATURE_BATCH: Final = 32


@dataclass
class _Outputs:
    """Elements that the modules without children put out for one image; `kept` leaves out what is written in place."""

    total: int = 0
    kept: int = 0
    largest: int = 0

    def note(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.total += output.numel()
            self.kept += 0 if getattr(module, "inplace", False) else output.numel()
            self.largest = max(self.largest, output.numel())


def needs(plan: Plan) -> Needs:
    """Bytes on the GPU for one process that trains `plan`. UserError where the images are too small for the model.

    least = 16 bytes a trained weight (weight, gradient, Adam's two moments) + 4 a frozen one + batch x outputs of all
    modules that the backward pass needs, in bfloat16: below that it cannot work. most = the same with every output
    counted, also those written in place, in float32, + 1.5 GiB for CUDA and its libraries: with that much it works.
    Over a frozen base nothing is kept for a backward pass: three of its largest outputs are alive at one time.
    """
    config = ModelConfig(model=cast(Any, plan.model), base=plan.base).resolved()
    batch = plan.batch_size
    with torch.device("meta"):
        base = build_base(config, load_weights=False)
        head = build_head(config, classes=_CLASSES, image_size=plan.image_size)
        outputs = _outputs(base, torch.zeros(1, 3, plan.image_size, plan.image_size))
        of_head = _outputs(head, torch.zeros(1, feature_count(config.model, plan.image_size)))
    if config.frozen:
        weights = _elements(base) + 4 * _elements(head)
        least, most = (outputs.largest * _FEATURE_BATCH * alive for alive in (1, 3))
    else:
        weights = 4 * (_elements(base) + _elements(head))
        least, most = outputs.kept * batch, outputs.total * batch
    least, most = least + of_head.kept * batch, most + of_head.total * batch
    return Needs(
        least=_FLOAT32 * weights + _BFLOAT16 * least,
        most=_FLOAT32 * (weights + most) + _LIBRARIES,
    )


def _outputs(module: nn.Module, inputs: Tensor) -> _Outputs:
    outputs = _Outputs()
    leaves = [child for child in module.modules() if not list(child.children())]
    hooks = [leaf.register_forward_hook(outputs.note) for leaf in leaves]
    with torch.no_grad():
        module.eval()(inputs)  # one image: BatchNorm would refuse it while training
    for hook in hooks:
        hook.remove()
    return outputs


def _elements(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
