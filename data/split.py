"""Train, validation and test, by group and stratified by label, so that adding rows moves as few groups as can be.

Each group belongs to the stratum of its globally rarest label, which makes room for the rare labels first (after
iterative stratification: Sechidis, Tsoumakas, Vlahavas 2011, "On the Stratification of Multi-Label Data"). Within a
stratum the groups stand in the order of sha256(seed, group), which no other row can change, and are taken in it:
test up to its share of the images, then validation, then train. New rows only shift where the shares end.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

TEST_SHARE: Final = 0.15
VALIDATION_SHARE: Final = 0.15


def assign(
    labels: Sequence[str],
    groups: Sequence[str],
    tokens: Sequence[str],
    given: Sequence[str],
    seed: int,
) -> tuple[list[str], list[str]]:
    """The split of each row ("train", "validation", "test"), and notes to be said aloud.

    Args:
        labels, groups: of each row.
        tokens: what is hashed for the row's group: its name; for an image that stands alone, its key and content.
        given: the split that the data states for the row, "" where it states none. Stated splits are kept. Where test
            or validation is stated for no row, it is carved from the rows of train. Rows without a split, where others
            have one, follow their group, and go to train where it has none.
        seed: another seed is another split.
    """
    splits = _follow(groups, given)
    stated = set(splits)
    wanted = tuple(part for part in ("test", "validation") if part not in stated)
    pool = [n for n, split in enumerate(splits) if split in ("", "train")]
    held = {groups[n] for n, split in enumerate(splits) if split not in ("", "train")}
    pool = [n for n in pool if groups[n] not in held]  # a group that the given splits tear apart is not torn again
    notes: list[str] = []
    if wanted and pool:
        placed = _carve([labels[n] for n in pool], [groups[n] for n in pool], [tokens[n] for n in pool], wanted, seed)
        for n in pool:
            splits[n] = placed[groups[n]]
        if stated - {""}:
            notes.append(f"The data states its splits; {' and '.join(wanted)} had no rows and came from train.")
    return [split or "train" for split in splits], [*notes, *_absent(labels, groups, splits)]


def _follow(groups: Sequence[str], given: Sequence[str]) -> list[str]:
    if not any(given) or all(given):
        return list(given)
    of_group = {group: split for group, split in zip(groups, given, strict=True) if split}
    return [split or of_group.get(group, "train") for group, split in zip(groups, given, strict=True)]


def _carve(
    labels: Sequence[str], groups: Sequence[str], tokens: Sequence[str], wanted: Sequence[str], seed: int
) -> dict[str, str]:
    """group -> split, for groups that may go anywhere."""
    counts = Counter(labels)
    sizes = Counter(groups)
    rarest: dict[str, str] = {}
    order: dict[str, bytes] = {}
    for label, group, token in zip(labels, groups, tokens, strict=True):
        rarest[group] = min(rarest.get(group, label), label, key=lambda name: (counts[name], name))
        order[group] = hashlib.sha256(f"{seed}\0{token}".encode()).digest()
    strata: dict[str, list[str]] = defaultdict(list)
    for group in sorted(order, key=lambda name: (order[name], name)):
        strata[rarest[group]].append(group)
    placed: dict[str, str] = {}
    for members in strata.values():
        placed.update(_fill(members, sizes, wanted))
    return placed


def _fill(members: list[str], sizes: Mapping[str, int], wanted: Sequence[str]) -> dict[str, str]:
    """One stratum, its groups in order: each wanted split gets its share and at least one group; train keeps one."""
    total = sum(sizes[group] for group in members)
    share = {"test": TEST_SHARE, "validation": VALIDATION_SHARE}
    left = list(members)
    placed = {}
    for position, part in enumerate(wanted):
        spare = len(left) - 1 - (len(wanted) - 1 - position)  # one group for train, one for each split after this
        if len(left) < 2:
            break
        for group in _take(left, sizes, share[part] * total, max(1, spare)):
            placed[group] = part
            left.remove(group)
    return placed | dict.fromkeys(left, "train")


def _take(left: Sequence[str], sizes: Mapping[str, int], target: float, most: int) -> list[str]:
    """Groups from the front, while the middle of the next one still lies within the target (nearest to it, that is).

    A group too large for that is passed over as long as nothing is taken, or one long video could become most of the
    test set; if all are too large, the smallest is taken.
    """
    taken: list[str] = []
    count = 0
    for group in left:
        if count + sizes[group] / 2 < target and len(taken) < most:
            taken.append(group)
            count += sizes[group]
        elif taken:
            break
    return taken or [min(left, key=lambda group: sizes[group])]


def _absent(labels: Sequence[str], groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """A note for the classes that lack images in a split, and for those in a single group."""
    where: dict[str, set[str]] = defaultdict(set)
    held: dict[str, set[str]] = defaultdict(set)
    for label, group, split in zip(labels, groups, splits, strict=True):
        where[label].add(split or "train")
        held[label].add(group)
    notes = []
    if single := sorted(label for label in held if len(held[label]) == 1):
        notes.append(f"All images of {_names(single)} lie in one group: they train, and nothing tests them.")
    for part in ("train", "validation", "test"):
        if lacking := sorted(label for label in where if part not in where[label] and len(held[label]) > 1):
            notes.append(f"No image of {_names(lacking)} is in {part}: there are too few groups.")
    return notes


def _names(labels: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more classes"
