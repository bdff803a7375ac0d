"""A run's manifest and people's corrections as one table that the next search reads."""

import csv
import hashlib
import io
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeAlias

from data import csvfile, store
from data.errors import UserError
from data.manifest import Row
from serve.corrections.keeping import TABLE, Corrections

Cells: TypeAlias = dict[str, str]
"""A row of the table to write: path, label, group, split, key."""


@dataclass(frozen=True)
class GatherConfig:
    """Which labels were used, what was said of them since, and where both go."""

    manifest: str
    """The manifest.csv of the run whose model was corrected, local or s3://."""
    corrections: str
    """The folder or s3:// address that the endpoint keeps corrections in."""
    out: str = "labels.csv"
    """The CSV to write, local or s3://: the --data of the next search."""
    overwrite: bool = False
    """Replace an existing output file."""

    def __post_init__(self) -> None:
        for name in ("manifest", "corrections", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")


@dataclass
class Gathered:
    """What came of it. `changed` counts images of the manifest by split whose label is another now."""

    out: str
    added: int = 0
    changed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    new_labels: tuple[str, ...] = ()

    def __str__(self) -> str:
        by_split = ", ".join(f"{number} in {split or 'no split'}" for split, number in sorted(self.changed.items()))
        text = f"images added: {self.added:,}; labels changed: {sum(self.changed.values()):,}"
        text += f" ({by_split})" if by_split else ""
        text += f"; new labels: {', '.join(self.new_labels)}" if self.new_labels else ""
        return f"{text} -> {self.out}\nsearch with  uv run tune/search.py --data {shlex.quote(self.out)}"


def gather(config: GatherConfig) -> Gathered:
    """Write `config.out` with the columns of a manifest. UserError where there is nothing to read, or `out` exists.

    An image of the manifest that was corrected gets its new label and keeps its split. The others come in without a
    split: a search lets them follow their group, and else train on them, so that the test images stay what they were.
    """
    manifest, folder, out = (store.absolute(path) for path in (config.manifest, config.corrections, config.out))
    if not config.overwrite and store.exists(out):
        raise UserError(f"{out}: exists already; give another --out or add --overwrite")
    source = csvfile.read(manifest, store.parent(manifest))
    if source.columns != csvfile.OURS:
        raise UserError(f"{manifest}: not the manifest.csv of a run; give that (columns {', '.join(csvfile.OURS)})")
    said = _said(folder)
    known = _those_in(source.rows, folder, said)
    gathered = Gathered(out)
    rows = []
    for row in source.rows:
        label = said[known[row.key]]["label"] if row.key in known else row.label
        gathered.changed[row.split] += label != row.label
        rows.append(_cells(row.entry.path, label, row.columns.get("group", ""), row.split, row.key))
    for name, correction in said.items():
        if name not in known.values():
            path = store.join(folder, *correction["path"].split("/"))
            key = f"corrections/{correction['path']}"
            rows.append(_cells(path, correction["label"], correction["group"] or key, "", key))
            gathered.added += 1
    gathered.changed = {split: number for split, number in gathered.changed.items() if number}
    gathered.new_labels = tuple(sorted({row["label"] for row in rows} - {row.label for row in source.rows}))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, csvfile.OURS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    store.write(out, text.getvalue().encode())
    return gathered


def _cells(path: str, label: str, group: str, split: str, key: str) -> Cells:
    return {"path": path, "label": label, "group": group, "split": split, "key": key}


def _said(folder: str) -> dict[str, Cells]:
    """The corrections by the hash in their image's name, from a table made anew."""
    if not Corrections(folder, max_rows=0, max_bytes=0).refresh():
        raise UserError(f"{folder}: no corrections there; give the folder that the endpoint was given")
    reader = csv.DictReader(io.StringIO(store.read(store.join(folder, TABLE)).decode(), newline=""))
    return {PurePosixPath(row["path"]).stem: row for row in reader}


def _those_in(rows: Sequence[Row], folder: str, said: Mapping[str, Cells]) -> dict[str, str]:
    """Key -> hash for the rows whose image was corrected. Only files of a fitting size are read."""
    images = store.list_files(store.join(folder, "images"))
    sizes = {entry.size for entry in images}
    fitting = {row.entry.path: row.key for row in rows if row.entry.size in sizes}
    known = {}
    for path, blob in store.read_many(fitting):
        if isinstance(blob, bytes) and (name := hashlib.sha256(blob).hexdigest()[:32]) in said:
            known[fitting[path]] = name
    return known
