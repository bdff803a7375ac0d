"""Optimisers, the learning rate over time, and what a training configuration refuses."""

from typing import Any

import pytest
import torch
from torch import nn

from models.optimise import TrainConfig, learning_rate_at, make_optimizer, set_learning_rate


def test_keras_time_decays_per_batch_and_is_no_weight_decay() -> None:
    story = TrainConfig(learning_rate=0.01, optimizer="sgd", momentum=0.1, schedule="keras-time")
    rates = [learning_rate_at(story, step) for step in (0, 1, 10, 90, 990)]
    assert rates == pytest.approx([0.01, 0.01 / 1.1, 0.005, 0.001, 0.0001])
    assert make_optimizer(story, nn.Linear(2, 2).parameters(), torch.device("cpu")).defaults["weight_decay"] == 0
    assert learning_rate_at(TrainConfig(learning_rate=0.01), 1000) == 0.01


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimisers_take_their_settings(name: Any, kind: type[torch.optim.Optimizer]) -> None:
    config = TrainConfig(optimizer=name, learning_rate=0.5, weight_decay=0.25, momentum=0.75)
    optimizer = make_optimizer(config, nn.Linear(2, 2).parameters(), torch.device("cpu"))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.5, 0.25, True)
    assert group.get("momentum", 0.75) == 0.75
    set_learning_rate(optimizer, 0.125)
    assert group["lr"] == 0.125


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_steps_equal_plain_ones(name: Any) -> None:
    config, weights = TrainConfig(optimizer=name, learning_rate=0.01, weight_decay=0.1), []
    for device in ("cpu", "meta"):  # a device without a fused form gets the plain one
        torch.manual_seed(0)
        layer = nn.Linear(3, 3)
        optimizer = make_optimizer(config, layer.parameters(), torch.device(device))
        for _ in range(5):
            optimizer.zero_grad()
            layer(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        weights.append(layer.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": -1}, "learning_rate must be > 0 and finite, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be > 0 and finite, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be > 0 and finite, got inf"),
        ({"epochs": -1}, "epochs must be >= 0, got -1"),
        ({"batch_size": 1}, "batch_size must be >= 2, got 1"),
        ({"patience": -1}, "patience must be >= 0, got -1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"weight_decay": float("nan")}, "weight_decay must be >= 0, got nan"),
        ({"momentum": 1}, "momentum must be >= 0 and < 1, got 1"),
        ({"optimizer": "lion"}, "optimizer must be one of adam, adamw, sgd, got lion"),
        ({"schedule": "cosine"}, "schedule must be one of constant, keras-time, got cosine"),
        ({"augment": "wild"}, "augment must be one of off, light, strong, got wild"),
        ({"balance": "yes"}, "balance must be one of off, weights, sampling, got yes"),
    ],
)
def test_a_config_checks_itself(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)
