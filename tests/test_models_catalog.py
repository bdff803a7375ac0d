"""The networks are the stories' own, and say so when images are too small for them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.errors import UserError
from data.resizing import Resize
from models.bundle import read_bundle, write_bundle
from models.catalog import (
    ARCHITECTURES,
    ModelConfig,
    build,
    build_base,
    build_head,
    feature_count,
    least_size,
    parameter_count,
)
from models.preprocess import Preprocess
from models.training import TrainConfig, TrainingRun
from tests.models_toys import CLASSES, toy_data


def config(model: Any, **values: Any) -> ModelConfig:
    untrained: dict[str, Any] = {} if model == "cnn" else {"weights": "none", "base": "finetune"}
    return ModelConfig(model, **untrained, **values)


@pytest.mark.parametrize(
    ("model", "dense_units", "count"), [("cnn", 32, 3_006_602), ("cnn", 10, 953_496), ("resnet152", 1000, 60_202_818)]
)
def test_parameter_counts_of_the_stories(model: str, dense_units: int, count: int) -> None:
    with torch.device("meta"):
        network = build(config(model, dense_units=dense_units), classes=10, image_size=224)
    assert parameter_count(network) == count


def test_relu_after_pooling_is_the_storys_network() -> None:
    torch.manual_seed(0)
    ours = build(config("cnn", dropout=0), classes=3, image_size=31)
    assert isinstance(ours.base, nn.Sequential)
    conv1, pool1, relu1, conv2, pool2, relu2, flatten = ours.base
    story = nn.Sequential(conv1, relu1, pool1, conv2, relu2, pool2, flatten, ours.head)
    images, labels = torch.rand(4, 3, 31, 31), torch.tensor([0, 1, 2, 0])
    gradients = []
    for network in (ours, story):
        ours.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad.clone() for parameter in ours.parameters() if parameter.grad is not None])
    assert torch.equal(ours(images), story(images))
    assert len(gradients[0]) == len(gradients[1]) == 8
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("model", [name for name in ARCHITECTURES if name not in ("resnet101", "resnet152")])
def test_the_least_size_works_and_gives_the_features_it_says(model: str) -> None:
    size = least_size(model)
    base = build_base(config(model)).eval()
    with torch.no_grad():
        assert base(torch.rand(2, 3, size, size)).shape == (2, feature_count(model, size))


@pytest.mark.parametrize(("model", "size", "least"), [("cnn", 9, 10), ("resnet18", 31, 32), ("mobilenet_v2", 16, 32)])
def test_too_small_images_are_told_the_least_size(model: str, size: int, least: int) -> None:
    with pytest.raises(UserError, match=f"images of {size} pixels are too small for {model}.*at least {least}"):
        build(config(model), classes=3, image_size=size)


@pytest.mark.parametrize("size", [10, 11, 33, 64, 225])
def test_cnn_takes_any_size(size: int) -> None:
    network = build(config("cnn"), classes=3, image_size=size)
    assert network(torch.rand(2, 3, size, size)).shape == (2, 3)


def test_one_class_is_nothing_to_tell_apart() -> None:
    with pytest.raises(UserError, match="at least 2 classes, found 1"):
        build_head(config("cnn"), classes=1, image_size=32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "vgg"}, "model must be one of cnn, resnet18.*got vgg"),
        ({"base": "cold"}, "base must be one of frozen, finetune, got cold"),
        ({"dense_units": -1}, "dense_units must be >= 0, got -1"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be >= 0 and < 1, got -0.1"),
        ({"weights": "torchvision"}, "cnn has no pretrained weights"),
        ({"model": "resnet18", "weights": "none"}, "use base finetune, or give weights"),
    ],
)
def test_a_config_checks_itself(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)


def test_defaults_of_the_weights_are_filled_in() -> None:
    assert ModelConfig().source == "none"
    assert ModelConfig("resnet50").source == "torchvision"
    assert not ModelConfig().frozen
    assert ModelConfig("resnet50").frozen
    assert {field.name for field in fields(ModelConfig)} == {"model", "weights", "base", "dense_units", "dropout"}


def test_a_frozen_base_neither_learns_nor_follows_the_images(backbone_file: Path) -> None:
    network = build(ModelConfig("mobilenet_v2", weights=str(backbone_file)), classes=3, image_size=32)
    network.train()
    assert network.head.training
    assert not any(module.training for module in network.base.modules())
    assert {id(parameter) for parameter in network.trainable()} == {id(p) for p in network.head.parameters()}
    before = {name: value.clone() for name, value in network.base.state_dict().items()}
    network(torch.rand(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.base.state_dict().items())
    assert all(parameter.grad is None for parameter in network.base.parameters())


@pytest.mark.parametrize("model", ["resnet50", "resnet152"])
def test_large_backbones_train_and_round_trip(model: str, tmp_path: Path) -> None:
    data = toy_data(model, train=2, validation=2, size=64)
    run = TrainingRun(config(model, dense_units=8), TrainConfig(epochs=1, batch_size=2), data)
    assert np.isfinite(run.run_epoch().validation_loss)
    network = run.best_model()
    write_bundle(str(tmp_path / "bundle"), network, classes=CLASSES, preprocess=data.preprocess)
    info, again = read_bundle(str(tmp_path / "bundle"))
    images = data.preprocess.to_batch(data.images[:2])
    assert info.architecture["model"] == model
    assert Preprocess.for_model(model, Resize(64)) == info.preprocess
    with torch.inference_mode():
        assert torch.equal(network(images), again(images))
