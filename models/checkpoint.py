"""One file that a training run can be continued from exactly."""

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import store
from data.errors import UserError

FORMAT_VERSION = 2  # 1: the scores of its epochs say nothing of the class named most, dead units and CPU time
_NAME = "checkpoint.pt"


def write(folder: str, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts under `folder`; whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **content}, buffer)
    Path(folder).mkdir(parents=True, exist_ok=True)
    store.write(os.path.join(folder, _NAME), buffer.getvalue())


def read(folder: str) -> dict[str, Any]:
    """What `write` wrote. Nothing in the file is run. UserError if there is none, or it is broken or newer."""
    path = os.path.join(folder, _NAME)
    if not os.path.isfile(path):
        raise UserError(f"{folder}: no checkpoint there ({_NAME} is missing); give the folder of a run that was saved")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = int(content["format_version"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: broken checkpoint; delete it and train again") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: checkpoint format {version}, this eagleray reads {FORMAT_VERSION}; use the one it is from"
        )
    return content


def snapshot(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict in main memory, which later steps do not change."""
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's state, each tensor laid out in memory as its parameter is, whatever it was saved as: a fused
    step walks through both side by side, and would pair the wrong numbers without a word."""
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
