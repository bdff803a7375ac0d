"""Folders called like splits: read as splits, or as classes, or refused; never guessed."""

from pathlib import Path

import pytest

from data import sources, store
from data.errors import UserError


def put(root: Path, *folders: str) -> None:
    for folder in folders:
        for number in range(3):
            store.write(str(root / folder / f"{number}.png"), b"x")


def found(root: Path) -> tuple[set[str], set[str]]:
    """The labels and the splits."""
    rows = sources.read(str(root)).rows
    return {row.label for row in rows}, {row.split for row in rows}


@pytest.mark.parametrize(
    ("train", "validation", "test"), [("Training", "Validation", "Testing"), ("TRAIN", "val", "Test")]
)
def test_splits_by_any_of_their_names(tmp_path: Path, train: str, validation: str, test: str) -> None:
    put(tmp_path, *(f"{split}/{label}" for split in (train, validation, test) for label in ("crab", "eel")))
    assert found(tmp_path) == ({"crab", "eel"}, {"train", "validation", "test"})


def test_training_and_testing_alone(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{label}" for split in ("Training", "Testing") for label in ("crab", "eel")))
    assert found(tmp_path) == ({"crab", "eel"}, {"train", "test"})


@pytest.mark.parametrize(
    "tops", [("valid", "test"), ("train", "dev"), ("dev", "test"), ("test", "other"), ("train", "bus", "car")]
)
def test_what_may_be_either_is_refused_with_both_readings(tmp_path: Path, tops: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{top}/{label}" for top in tops for label in ("crab", "eel")))
    with pytest.raises(UserError, match=r"(?s)splits, or classes\?.*crab/, eel/.*If classes"):
        sources.read(str(tmp_path))


@pytest.mark.parametrize("tops", [("train", "bus", "car"), ("Test", "train", "bus"), ("dev", "ops")])
def test_a_class_may_be_called_like_a_split(tmp_path: Path, tops: tuple[str, ...]) -> None:
    put(tmp_path, *tops)
    assert found(tmp_path) == (set(tops), {""})


def test_sites_below_a_class_called_like_a_split(tmp_path: Path) -> None:
    put(tmp_path, "test/site1", "test/site2", "other", "another/site3")
    assert found(tmp_path) == ({"test", "other", "another"}, {""})


def test_splits_without_classes_say_so(tmp_path: Path) -> None:
    put(tmp_path, "train", "test")
    with pytest.raises(UserError, match="no class folders"):
        sources.read(str(tmp_path))
