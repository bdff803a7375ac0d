"""A network of the catalogue written down as an ONNX model, layer by layer.

torch has two exporters of its own. The one over TorchScript is deprecated, and TorchScript is not supported from Python
3.14 on; the one over torch.export needs three more packages and 7 seconds of CPU for a small network, which every
search and every endpoint would pay again. The catalogue has ten kinds of layers, and this takes 0.1 s.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

# Old enough for every runtime that is still in use.
_OPSET, _IR = 17, 10
# With a dot, so that no name of the traced network is the same.
INPUT, OUTPUT = "batch.images", "batch.outputs"


@dataclass(frozen=True)
class _Operator:
    """An ONNX operator: what it is called, its attributes, and the constants that follow its inputs."""

    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Sequence[Tensor] = ()


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _convolution(layer: nn.Conv2d) -> _Operator:
    assert layer.padding_mode == "zeros"
    attributes = {
        "strides": _pair(layer.stride),
        "pads": _pair(layer.padding) * 2,
        "dilations": _pair(layer.dilation),
        "group": layer.groups,
    }
    return _Operator("Conv", attributes, [layer.weight] + ([] if layer.bias is None else [layer.bias]))


def _batch_norm(layer: nn.BatchNorm2d) -> _Operator:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    constants = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    return _Operator("BatchNormalization", {"epsilon": layer.eps}, constants)


def _max_pool(layer: nn.MaxPool2d) -> _Operator:
    assert _pair(layer.dilation) == [1, 1]
    attributes = {
        "kernel_shape": _pair(layer.kernel_size),
        "strides": _pair(layer.stride),
        "pads": _pair(layer.padding) * 2,
        "ceil_mode": int(layer.ceil_mode),
    }
    return _Operator("MaxPool", attributes)


def _average(size: Any) -> _Operator:
    assert _pair(size) == [1, 1]
    return _Operator("GlobalAveragePool")


_LAYERS: dict[type[nn.Module], Callable[[Any], _Operator]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: lambda layer: _average(layer.output_size),
    nn.Linear: lambda layer: _Operator("Gemm", {"transB": 1}, (layer.weight, layer.bias)),
    nn.ReLU: lambda layer: _Operator("Relu"),
    nn.ReLU6: lambda layer: _Operator("Clip", constants=(torch.tensor(0.0), torch.tensor(6.0))),
    nn.Flatten: lambda layer: _Operator("Flatten", {"axis": layer.start_dim}),
    nn.Dropout: lambda layer: _Operator("Identity"),
    nn.Identity: lambda layer: _Operator("Identity"),
}

# What forward methods call themselves; the arguments are those after the inputs.
_FUNCTIONS: dict[Any, Callable[..., _Operator]] = {
    operator.add: lambda: _Operator("Add"),
    operator.iadd: lambda: _Operator("Add"),
    operator.sub: lambda: _Operator("Sub"),
    operator.mul: lambda: _Operator("Mul"),
    torch.flatten: lambda start: _Operator("Flatten", {"axis": start}),
    F.adaptive_avg_pool2d: _average,
}


def to_onnx(network: nn.Module) -> bytes:
    """`network`, in eval mode on the CPU, float32 (B, 3, H, W) -> (B, F), as a serialized ONNX model; B is left open.

    NotImplementedError for a layer that the catalogue does not have.
    """
    assert not any(module.training for module in network.modules()), "eval() first: dropout and BatchNorm depend on it"
    # The graph as forward runs it; torch's own layers stay whole.
    tracer = fx.Tracer()
    graph = tracer.trace(network)
    vars(tracer).clear()  # it is a cycle of references, which would keep the weights until the next collection
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            constants[node.name] = _constant(node.name, operator.attrgetter(node.target)(network))
        elif node.op in ("call_module", "call_function"):
            what = _operator(node, network)
            mine = {f"{node.name}.{place}": tensor for place, tensor in enumerate(what.constants)}
            constants |= {name: _constant(name, tensor) for name, tensor in mine.items()}
            inputs = [*(source.name for source in node.all_input_nodes), *mine]
            nodes.append(onnx.helper.make_node(what.kind, inputs, [node.name], **what.attributes))
    (images,) = (node.name for node in graph.nodes if node.op == "placeholder")
    (last,) = (node.args[0].name for node in graph.nodes if node.op == "output")
    nodes.insert(0, onnx.helper.make_node("Identity", [INPUT], [images]))
    nodes.append(onnx.helper.make_node("Identity", [last], [OUTPUT]))
    kind = onnx.TensorProto.FLOAT
    written = onnx.helper.make_graph(
        nodes,
        type(network).__name__,
        [onnx.helper.make_tensor_value_info(INPUT, kind, ["batch", 3, "height", "width"])],
        [onnx.helper.make_tensor_value_info(OUTPUT, kind, ["batch", "length"])],
        list(constants.values()),
    )
    opset = onnx.helper.make_opsetid("", _OPSET)
    return bytes(onnx.helper.make_model(written, opset_imports=[opset], ir_version=_IR).SerializeToString())


def _operator(node: fx.Node, network: nn.Module) -> _Operator:
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        if type(layer) not in _LAYERS:
            raise NotImplementedError(f"no ONNX form of {type(layer).__name__} here; add it to _LAYERS")
        return _LAYERS[type(layer)](layer)
    if node.target not in _FUNCTIONS:
        raise NotImplementedError(f"no ONNX form of {node.target} here; add it to _FUNCTIONS")
    return _FUNCTIONS[node.target](*(value for value in node.args if not isinstance(value, fx.Node)))


def _constant(name: str, tensor: Tensor) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(tensor.detach().contiguous().numpy(), name)
