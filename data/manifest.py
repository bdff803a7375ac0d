"""Rows of a collection as its source gives them, and what is wrong among them once their contents are known."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from data.images import IMAGE_SUFFIXES
from data.pack import Outcome
from data.problems import Problem
from data.store import Entry
from data.words import counted

Item = TypeVar("Item")

SPLITS: Final = ("train", "validation", "test")
SPLIT_NAMES: Final = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""How people write the splits -> how we do."""
FEW_IMAGES: Final = 3
"""A class needs this many images to be in all three splits."""


@dataclass(frozen=True)
class Row:
    """One labelled image. `key` is its path below the root in Unicode NFC: the same from disk and bucket."""

    entry: Entry
    key: str
    label: str
    split: str = ""
    columns: dict[str, str] = field(default_factory=dict, hash=False)
    line: int | None = None

    def problem(self, code: str, detail: str) -> Problem:
        return Problem(self.entry.path, code, detail, self.line)


@dataclass(frozen=True)
class Source:
    """What a folder or CSV holds: rows, the problems found so far, the CSV's columns, and the root of its paths."""

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    columns: tuple[str, ...]
    root: str
    notes: tuple[str, ...] = ()


def nfc(text: str) -> str:
    """One spelling for names that macOS writes decomposed and the others composed."""
    return unicodedata.normalize("NFC", text)


def looks_like_image(name: str) -> bool:
    """By its suffix. Used for files that no row names: what a row names is opened, whatever its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def check(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> tuple[list[tuple[Row, str]], list[Problem]]:
    """(the good rows with their sha256, sorted by key) and the problems of the others and among them.

    Left out: missing and unreadable files, later copies of the same bytes, and all of the same bytes under two labels.
    """
    problems: list[Problem] = []
    good: list[tuple[Row, str]] = []
    for row, outcome in sorted(zip(rows, outcomes, strict=True), key=lambda pair: pair[0].key):
        if isinstance(outcome, str):
            good.append((row, outcome))
        elif row.entry.version == "":
            problems.append(row.problem("missing", "no such file; left out"))
        else:
            problems.append(row.problem("unreadable", f"{outcome.code}: {outcome.message}; left out"))
    good, found = _without_copies(good)
    return good, [*problems, *found, *_same_names(good), *_label_problems(good)]


def _without_copies(rows: list[tuple[Row, str]]) -> tuple[list[tuple[Row, str]], list[Problem]]:
    kept, problems = [], []
    for same in _by(rows, lambda pair: pair[1]).values():
        labels = sorted({row.label for row, _ in same})
        if len(labels) > 1:
            detail = f"the same bytes are labelled {', '.join(map(repr, labels))}; all left out"
            others = [row.key for row, _ in same]
            problems += [row.problem("two_labels", f"{detail} ({_some(others)})") for row, _ in same]
            continue
        kept.append(same[0])
        problems += [row.problem("duplicate", f"the same bytes as {same[0][0].key}; left out") for row, _ in same[1:]]
    return sorted(kept, key=lambda pair: pair[0].key), problems


def _same_names(rows: list[tuple[Row, str]]) -> list[Problem]:
    alike = (same for same in _by(rows, lambda pair: pair[0].key.casefold()).values() if len(same) > 1)
    return [
        row.problem("same_name", f"equal up to case: {_some([other.key for other, _ in same])}; kept")
        for same in alike
        for row, _ in same
    ]


def _label_problems(rows: list[tuple[Row, str]]) -> list[Problem]:
    by_label = _by(rows, lambda pair: pair[0].label)
    problems = [
        Problem("", "few_images", f"label {label!r} has {counted(len(same), 'image')}; kept")
        for label, same in by_label.items()
        if len(same) < FEW_IMAGES
    ]
    for alike in _by(by_label, lambda label: " ".join(label.casefold().replace("_", " ").split())).values():
        if len(alike) > 1:
            problems.append(Problem("", "similar_labels", f"{', '.join(map(repr, sorted(alike)))}; kept apart"))
    return problems


def group_problems(labels: Sequence[str], groups: Sequence[str], splits: Sequence[str]) -> list[Problem]:
    """Labels whose images all lie in one group, and groups that the given splits tear apart."""
    of_label, of_group = defaultdict(set), defaultdict(set)
    images: dict[str, int] = defaultdict(int)
    for label, group, split in zip(labels, groups, splits, strict=True):
        of_label[label].add(group)
        images[label] += 1
        if split:
            of_group[group].add(split)
    problems = [
        Problem("", "single_group", f"all {images[label]} images of {label!r} lie in one group, {min(held)!r}; kept")
        for label, held in sorted(of_label.items())
        if len(held) == 1 and images[label] > 1
    ]
    for group, held in sorted(of_group.items()):
        if len(held) > 1:
            detail = f"group {group!r} lies in {' and '.join(s for s in SPLITS if s in held)}; kept as given"
            problems.append(Problem("", "straddling", detail))
    return problems


def torn_notes(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """What given splits that tear groups apart do to the scores; our own splits never do."""
    train = {group for group, split in zip(groups, splits, strict=True) if split == "train"}
    notes = []
    for part, harm in (
        ("validation", "the choice among models rewards memory"),
        ("test", "the test accuracy measures memory"),
    ):
        held = [group for group, split in zip(groups, splits, strict=True) if split == part]
        if shared := sum(group in train for group in held):
            verb = "shares" if shared == 1 else "share"
            notes.append(
                f"{shared} of {counted(len(held), f'{part} image')} {verb} a group with "
                f"training images, because the given split tears groups apart: {harm}."
            )
    return notes


def _by(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return found


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
