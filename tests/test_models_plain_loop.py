"""What is fast about training is not other mathematics: the same weights and batches give what the plain loop gives."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import batches, probe
from models.catalog import Classifier, ModelConfig
from models.training import TrainConfig, TrainingData, TrainingRun
from tests.models_toys import toy_data

CONFIG = TrainConfig(learning_rate=0.001, batch_size=16, epochs=2, patience=0)


def plain_network(size: int) -> nn.Sequential:
    """The story's network as it is told: ReLU before each pooling, everything contiguous."""
    side = ((size - 2) // 2 - 2) // 2
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(32 * side**2, 32), nn.ReLU(), nn.Linear(32, 3)),
    )


def plain_losses(network: nn.Module, data: TrainingData) -> list[float]:
    """Train as the tutorials do (torch's Adam as it comes), on our order of images; the mean loss of each epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=CONFIG.learning_rate, foreach=False, fused=False)
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous().float() / 255
    means = []
    for epoch in (1, 2):
        order = batches.epoch_order(data.train.labels, sampling=False, seed=CONFIG.seed, epoch=epoch)
        total = 0.0
        for batch in batches.cut(order, CONFIG.batch_size, 1):
            labels = torch.from_numpy(data.train.labels[batch])
            loss = F.cross_entropy(network(images[data.train.rows[batch]]), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch)
        means.append(total / len(order))
    return means


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_the_fast_step_is_the_plain_step(
    layout: Literal["channels_last", "contiguous"], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probe, "layout_for", lambda *_, **__: probe._LAYOUTS[layout])
    data = toy_data()
    run = TrainingRun(ModelConfig(dropout=0), CONFIG, data, cache_dir=str(tmp_path))
    plain, ours = plain_network(32), run._learner.trained
    assert isinstance(ours, Classifier)
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
            theirs.copy_(mine)

    # One batch: the same loss and the same gradients.
    rows, labels = data.train.rows[:16], torch.from_numpy(data.train.labels[:16])
    batch = run._learner._source.training(rows, None, 1)
    losses = [F.cross_entropy(network(batch.contiguous()), labels) for network in (ours, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        np.testing.assert_allclose(mine.grad, theirs.grad, rtol=0, atol=1e-5 * scale)

    # Two epochs of the whole loop: the same losses.
    expected = plain_losses(plain, data)
    assert [run.run_epoch().training_loss for _ in range(2)] == pytest.approx(expected, rel=1e-4)
