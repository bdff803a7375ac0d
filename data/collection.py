"""A collection of labelled images, ready to train on: what the other folders call.

list or parse -> read, hash, decode, resize (the pack) -> problems -> groups -> split
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from data import cachefolder, groups, manifest, pack, packfolder, problems, sample, sources, split, store
from data.checks import at_least, one_of
from data.errors import UserError
from data.images import Failure, Pixels
from data.resizing import Resize, ResizeMode

SAMPLE_SIZE = 64
"""Pixels a side for the generated sample: its creatures are still several pixels across, and a search stays minutes."""
IMAGE_SIZE = 224
"""Pixels a side for everything else: what the pretrained backbones were trained with."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are grouped, split and resized."""

    data: str = ""
    """Labelled images: a folder with a folder per class (below train/, valid/, test/ if it is split already), a CSV
    path,label[,group][,split], a target file of index, filename, label; local or s3://. Empty: the generated sample."""
    images: str = ""
    """Folder or s3:// prefix that the paths in the CSV are relative to. Empty: the folder of the CSV."""
    group_by: str = ""
    """What must not be split: a column of the CSV, "video" (from names such as
    56321614_EX1708_VID_20170926T212000Z_ROVHD.mp4_1378.png), "image" (nothing is kept together), or "regex:PATTERN"
    with the group's name in parentheses. Empty: the column "group" if there is one, else the video, else the image."""
    split_seed: int = 0
    """Another seed is another division into train, validation and test."""
    sample_seed: int = 0
    """Another seed is another generated sample."""
    image_size: int = 0
    """Side in pixels that images are resized to. 0: 64 for the generated sample, 224 for your own images."""
    resize: ResizeMode = "stretch"
    """How an image becomes square: "stretch" it, "crop" its middle, or "pad" it with black."""
    cache_dir: str = ""
    """Folder for packed images and copies of S3 objects, safe to delete. Empty: the user's cache folder."""

    def __post_init__(self) -> None:
        if self.image_size != 0:
            Resize(self.image_size)
        one_of(self, resize=get_args(ResizeMode))
        at_least(self, split_seed=0, sample_seed=0)
        if self.images and not self.data:
            raise ValueError(f"images {self.images!r} needs data: the CSV whose paths are relative to it")

    def absolute(self) -> "DataConfig":
        """All paths made absolute, once, at the command line: workers have other working directories."""
        return replace(
            self,
            data=store.absolute(self.data) if self.data else "",
            images=store.absolute(self.images) if self.images else "",
            cache_dir=cachefolder.resolve(self.cache_dir),
        )


@dataclass(frozen=True, eq=False)
class Subset:
    """The rows of one split, in the order of their keys."""

    split: str
    rows: npt.NDArray[np.int64]
    """Index of each image in `Collection.images()`, shape (n,)."""
    labels: npt.NDArray[np.int64]
    """Index of each label in `Collection.classes`, shape (n,)."""
    paths: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Collection:
    """The validated manifest and the address of its pack. Small and picklable: a worker opens the pack by its path."""

    table: pd.DataFrame
    """Sorted by key: path, key (posix, below the root), label, group, frame (Int64, <NA> without a number), split
    ("train", "validation", "test"), sha256 of the file, row (index into the pack)."""
    problems: pd.DataFrame
    """Columns row, path, problem, detail, what_to_do; empty if there are none."""
    classes: tuple[str, ...]
    grouping: str
    """How groups were formed, in one sentence."""
    notes: tuple[str, ...]
    """What must be said aloud: a class in one group, a split that was carved from train, …"""
    pack_path: str
    config: DataConfig
    """As given, with absolute paths and `image_size` set."""
    generated: bool
    """Whether this is the generated sample."""

    @cached_property
    def resize(self) -> Resize:
        return Resize(self.config.image_size, self.config.resize)

    def here(self) -> "Collection":
        """This collection for the machine that asks: where its pack is not there (another node of a cluster) the images
        are read and packed again, once, into the same cache folder. `UserError` where they have changed.
        """
        if packfolder.rows(self.pack_path):
            return self
        again = load_collection(self.config)
        if again.fingerprints() != self.fingerprints():
            raise UserError(f"{self.config.data}: the images or labels changed while they were used; begin a new run")
        return again

    def images(self) -> Pixels:
        """All images (N, H, W, 3) uint8, read-only: one mapping per process, its pages shared by all processes."""
        return packfolder.open_pack(self.pack_path)

    def subset(self, split: str) -> Subset:
        """The rows of "train", "validation" or "test", in the order of their keys."""
        if split not in manifest.SPLITS:
            raise ValueError(f"split must be one of {', '.join(manifest.SPLITS)}, got {split!r}")
        part = self.table[self.table["split"] == split]
        index = {label: number for number, label in enumerate(self.classes)}
        return Subset(
            split=split,
            rows=part["row"].to_numpy(np.int64),
            labels=np.array([index[label] for label in part["label"]], dtype=np.int64),
            paths=tuple(part["path"]),
            groups=tuple(part["group"]),
        )

    def fingerprints(self) -> dict[str, str]:
        """sha256 of the data (key, label, content) and of the split (key, split): the same from disk and bucket."""
        return {
            "data": _fingerprint(self.table[["key", "label", "sha256"]].itertuples(index=False, name=None)),
            "split": _fingerprint(self.table[["key", "split"]].itertuples(index=False, name=None)),
        }

    def write_manifest(self, path: str) -> None:
        """Write path, label, group, split, key as CSV. Given back as --data it yields the same groups and split."""
        store.write(path, self.table[list(sources.MANIFEST_COLUMNS)].to_csv(index=False).encode())

    def write_problems(self, path: str) -> None:
        """Write the problems as CSV; only the header where there are none."""
        store.write(path, self.problems.to_csv(index=False).encode())


def load_collection(config: DataConfig, *, progress: bool = False) -> Collection:
    """Read, check, group, split and pack what `config` names. Raises UserError where nothing can be trained on it."""
    config = config.absolute()
    generated = not config.data
    config = replace(config, image_size=config.image_size or (SAMPLE_SIZE if generated else IMAGE_SIZE))
    with cachefolder.usable(config.cache_dir):
        data = config.data or sample.ensure(config.cache_dir, config.sample_seed)
    source = sources.read(data, config.images)
    listed = sorted(source.rows, key=lambda row: (row.key, row.entry.path))  # whatever order the CSV has
    packed = pack.build(
        [row.entry for row in listed],
        Resize(config.image_size, config.resize),
        cache_dir=config.cache_dir,
        scope=source.root,
        progress=progress,
    )
    good, found = manifest.check(listed, packed.outcomes)
    _check_usable(data, good, packed.outcomes)
    rows, shas = [row for row, _ in good], [sha for _, sha in good]
    grouped = groups.form(rows, config.group_by, source.columns)
    labels, given = [row.label for row in rows], [row.split for row in rows]
    tokens = [
        f"{row.key}\0{sha}" if alone else group
        for row, sha, group, alone in zip(rows, shas, grouped.groups, grouped.alone, strict=True)
    ]
    splits, notes = split.assign(labels, grouped.groups, tokens, given, config.split_seed)
    if "train" not in splits:
        raise UserError(f"{data}: every image is said to be validation or test; give some images to train")
    found += [*source.problems, *grouped.problems, *manifest.group_problems(labels, grouped.groups, given)]
    table = pd.DataFrame(
        {
            "path": pd.array([row.entry.path for row in rows], dtype="str"),
            "key": pd.array([row.key for row in rows], dtype="str"),
            "label": pd.array(labels, dtype="str"),
            "group": pd.array(list(grouped.groups), dtype="str"),
            "frame": pd.array(list(grouped.frames), dtype="Int64"),
            "split": pd.array(splits, dtype="str"),
            "sha256": pd.array(shas, dtype="str"),
            "row": np.array([packed.rows[sha] for sha in shas], dtype=np.int64),
        }
    )
    cachefolder.evict(config.cache_dir, keep=[packed.folder])
    return Collection(
        table=table,
        problems=problems.table(found),
        classes=tuple(sorted(set(labels))),
        grouping=grouped.how,
        notes=(*source.notes, *manifest.torn_notes(grouped.groups, splits), *notes),
        pack_path=packed.folder,
        config=config,
        generated=generated,
    )


def _check_usable(data: str, good: list[tuple[manifest.Row, str]], outcomes: Iterable[pack.Outcome]) -> None:
    if not good:
        failures = Counter(outcome for outcome in outcomes if isinstance(outcome, Failure))
        why = f"; mostly: {failures.most_common(1)[0][0].message}" if failures else ""
        raise UserError(f"{data}: no usable image{why}")
    if len(labels := {row.label for row, _ in good}) < 2:
        raise UserError(
            f"{data}: the only class is {labels.pop()!r}; a classifier needs two: give the folder above the class "
            "folders, or label some images differently"
        )


def _fingerprint(rows: Iterable[tuple[str, ...]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update("\0".join(row).encode() + b"\n")
    return digest.hexdigest()
