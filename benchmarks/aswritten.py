"""What people write: a search that decodes and convolves in every epoch, and the CNN's training step in eager NCHW.

In the words of the usual tutorials; nothing here is ours. `search.py` measures it in processes of its own.
"""

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

# ImageNet's, as in every tutorial.
_NORMALISE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Files of a `path,label,split` table, decoded and transformed one by one whenever they are asked for."""

    def __init__(self, table: Path, split: str, size: int, limit: int) -> None:
        with table.open() as file:
            rows = list(csv.DictReader(file))
        classes = sorted({row["label"] for row in rows})
        chosen = [row for row in rows if row["split"] == split][:limit]
        self._rows = [(table.parent / row["path"], classes.index(row["label"])) for row in chosen]
        self._change = transforms.Compose(
            [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), _NORMALISE]
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        path, label = self._rows[place]
        return self._change(Image.open(path).convert("RGB")), label


class FrozenNetwork(nn.Module):
    """A backbone that keeps its weights, and a head that learns."""

    def __init__(self, weights: str, classes: int, units: int) -> None:
        super().__init__()
        backbone = torchvision.models.mobilenet_v2(weights=None)
        backbone.load_state_dict(torch.load(weights, weights_only=True), strict=False)  # a file may lack the classifier
        self.features, self.pool = backbone.features.requires_grad_(False), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(1280, units), nn.ReLU(), nn.Dropout(0.2), nn.Linear(units, classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.pool(self.features(images))
        logits: torch.Tensor = self.head(features)
        return logits


def one_epoch(network: FrozenNetwork, optimizer: torch.optim.Optimizer, training: Any, validation: Any) -> float:
    """Train on all batches, then score; the validation accuracy."""
    network.train()
    network.features.eval()  # BatchNorm as it was learned
    for images, labels in training:
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
    network.eval()
    right = count = 0
    with torch.no_grad():
        for images, labels in validation:
            right += int((network(images).argmax(1) == labels).sum())
            count += len(labels)
    return right / count


def search_part(table: Path, weights: str, train: int, validation: int) -> float:
    """CPU seconds of one epoch over so many images, after a short one that warms everything up."""
    torch.set_num_threads(1)
    network = FrozenNetwork(weights, classes=10, units=32)
    optimizer = torch.optim.Adam(network.head.parameters(), lr=0.001)

    def loader(split: str, limit: int) -> Any:
        return DataLoader(Pictures(table, split, 224, limit), batch_size=32, shuffle=split == "train", num_workers=0)

    one_epoch(network, optimizer, loader("train", 32), loader("validation", 32))
    training, scored = loader("train", train), loader("validation", validation)
    start = time.process_time()
    one_epoch(network, optimizer, training, scored)
    return time.process_time() - start


def plain_cnn(size: int, classes: int = 10) -> nn.Sequential:
    """The story's network as it is told, ReLU before each pooling."""
    side = ((size - 2) // 2 - 2) // 2
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(32 * side**2, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, classes)),
    )


def step_rate(size: int, batches: int) -> float:
    """Images per CPU second of the CNN's training step alone, batches of 32 that are there already."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = plain_cnn(size).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    images, labels = torch.rand(32, 3, size, size), torch.randint(0, 10, (32,))

    def step() -> None:
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()

    for _ in range(3):
        step()
    start = time.process_time()
    for _ in range(batches):
        step()
    return 32 * batches / (time.process_time() - start)


def input_rate(table: Path, size: int, count: int) -> float:
    """Images per CPU second from files to batches of 32."""
    torch.set_num_threads(1)
    batches = DataLoader(Pictures(table, "train", size, count), batch_size=32, num_workers=0)
    list(batches)  # a first time, for what is done only once
    start = time.process_time()
    for _batch in batches:
        pass
    return count / (time.process_time() - start)


if __name__ == "__main__":
    what, *values = sys.argv[1:]
    if what == "search":
        print(json.dumps(search_part(Path(values[0]), values[1], int(values[2]), int(values[3]))))
    elif what == "step":
        print(json.dumps(step_rate(int(values[0]), int(values[1]))))
    else:
        print(json.dumps(input_rate(Path(values[0]), int(values[1]), int(values[2]))))
