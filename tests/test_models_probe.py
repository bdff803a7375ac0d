"""The memory layout: chosen once for each processor and kept, by rank 0, and never part of the result."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models import probe
from models.batches import World
from models.catalog import ModelConfig, build
from models.training import TrainConfig, TrainingRun
from tests.models_toys import toy_data

CNN = ModelConfig(dropout=0.2)
MOBILENET = ModelConfig("mobilenet_v2", weights="none", base="finetune")


def choose(cache: Path, **changes: Any) -> torch.memory_format:
    options = {"batch_size": 16, "world": World(), "device": torch.device("cpu"), **changes}
    network = build(CNN, classes=3, image_size=32)
    return probe.layout_for(network, "cnn", toy_data().preprocess, cache_dir=str(cache), **options)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A processor on which contiguous is twice as fast, and the batch sizes that were timed on it."""
    sizes = []

    def measure(_network: Any, _preprocess: Any, batch_size: int) -> dict[str, float]:
        sizes.append(batch_size)
        return {"channels_last": 0.2, "contiguous": 0.1}

    monkeypatch.setattr(probe, "_measure", measure)
    return sizes


def test_what_was_measured_is_kept_for_the_next_trial(measured: list[int], tmp_path: Path) -> None:
    assert [choose(tmp_path) for _ in range(3)] == [torch.contiguous_format] * 3
    assert measured == [16]
    choose(tmp_path, batch_size=8)
    assert measured == [16, 8]
    (kept, _) = sorted(map(json.loads, (path.read_text() for path in tmp_path.glob("probes/*.json"))), key=str)[::-1]
    assert (kept["network"], kept["image_size"], kept["layout"]) == ("cnn", 32, "contiguous")
    assert kept["processor"] == probe.processor() != ""


def test_a_broken_note_is_made_again(measured: list[int], tmp_path: Path) -> None:
    choose(tmp_path)
    (path,) = tmp_path.glob("probes/*.json")
    for broken in ("", "[]", "{}", '{"layout": "sideways"}'):
        path.write_text(broken)
        assert choose(tmp_path) == torch.contiguous_format
    assert measured == [16] * 5


def test_a_gpu_and_a_cache_that_keeps_nothing_mean_channels_last(measured: list[int], tmp_path: Path) -> None:
    assert choose(tmp_path, device=torch.device("cuda")) == torch.channels_last
    (tmp_path / "probes").write_text("in the way")
    assert choose(tmp_path) == torch.channels_last
    assert measured == []


def test_little_is_no_reason_to_leave_channels_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "_measure", lambda *_: {"channels_last": 0.2, "contiguous": 0.19})
    assert choose(tmp_path) == torch.channels_last


@pytest.mark.parametrize("model", [CNN, MOBILENET], ids=lambda config: config.model)
def test_measuring_changes_nothing(model: ModelConfig) -> None:
    network = build(model, classes=3, image_size=32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    seconds = probe._measure(network, toy_data().preprocess, 16)
    assert torch.equal(torch.rand(1), expected)
    assert set(seconds) == {"channels_last", "contiguous"}
    assert min(seconds.values()) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_whose_first_steps_take_the_whole_budget_gets_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    images = []

    def slow(_network: Any, _preprocess: Any, pixels: torch.Tensor, _layout: Any) -> float:
        images.append(len(pixels))
        return 0.5

    monkeypatch.setattr(probe, "_step", slow)
    probe._measure(build(CNN, classes=3, image_size=32), toy_data().preprocess, 32)
    assert images == [2, 2]


def test_a_frozen_base_is_not_probed(measured: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = build(MOBILENET, classes=3, image_size=32).base
    torch.save(base.state_dict(), tmp_path / "base.pth")
    frozen = ModelConfig("mobilenet_v2", weights=str(tmp_path / "base.pth"))
    TrainingRun(frozen, TrainConfig(), toy_data("mobilenet_v2"), cache_dir=str(tmp_path))
    assert measured == []


@pytest.mark.parametrize("model", [CNN, MOBILENET], ids=lambda config: config.model)
def test_both_layouts_are_the_same_function(model: ModelConfig) -> None:
    """In float64, so that a difference is one of mathematics: BatchNorm over few images blows float32's rounding up."""
    data = toy_data(model.model)
    network = build(model, classes=3, image_size=32).double()
    gradients = []
    for layout in probe._LAYOUTS.values():
        one = copy.deepcopy(network).to(memory_format=layout).train()
        torch.manual_seed(0)
        one(data.preprocess.normalise_(data.preprocess.to_unit(data.images[:8], layout=layout)).double()).logsumexp(
            dim=1
        ).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters()]))  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9 * float(gradients[0].abs().max()))


def run(optimizer: Any, layout: str, monkeypatch: pytest.MonkeyPatch) -> TrainingRun:
    monkeypatch.setattr(probe, "layout_for", lambda *_, **__: probe._LAYOUTS[layout])
    config = TrainConfig(1e-3, epochs=2, batch_size=16, optimizer=optimizer, augment="strong", patience=0)
    return TrainingRun(CNN, config, toy_data(train=32, validation=16))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_layout_is_no_part_of_the_result(optimizer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    last, plain = (run(optimizer, layout, monkeypatch) for layout in ("channels_last", "contiguous"))
    for one, is_last in ((last, True), (plain, False)):
        weight = next(p for p in one._learner.trained.parameters() if p.ndim == 4)
        batch = one._learner._source.training(one.data.train.rows[:4], None, 1)
        assert weight.is_contiguous() == batch.is_contiguous() == (not is_last)
        one.run_epoch()
    last.save(str(tmp_path))
    moved = run(optimizer, "contiguous", monkeypatch)  # as on another machine
    moved.load(str(tmp_path))
    for one in (last, plain, moved):
        one.run_epoch()
    for other in (plain, moved):
        for ours, theirs in zip(last.scores, other.scores, strict=True):
            assert theirs.training_loss == pytest.approx(ours.training_loss, abs=1e-4)
            assert theirs.validation_loss == pytest.approx(ours.validation_loss, abs=1e-4)
