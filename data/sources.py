"""Where labelled images come from: a folder per class (here), or a CSV (`csvfile`)."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable

from data import csvfile, store
from data.errors import UserError
from data.manifest import SPLIT_NAMES, Row, Source, looks_like_image, nfc
from data.problems import Problem
from data.store import Entry

_TABLES = (".csv", ".tsv", ".txt")
_LIKE_SPLITS = {*SPLIT_NAMES, "dev"}
MANIFEST_COLUMNS = csvfile.OURS


def read(data: str, images: str = "") -> Source:
    """The rows of a folder, or of a CSV or target file whose images lie beside it or under `images`.

    Both are local (absolute) or s3:// paths. Raises UserError where nothing usable is there.
    """
    if data.lower().endswith(_TABLES):
        if images and not store.is_remote(images) and not os.path.isdir(images):
            raise UserError(f"--images {images}: no such folder; give the folder that the paths in {data} start from")
        return csvfile.read(data, images or store.parent(data))
    if images:
        raise UserError(f"--images {images}: only a CSV needs it, and --data {data} is a folder; leave --images out")
    if os.path.isfile(data):
        raise UserError(f"{data}: neither a folder nor a .csv, .tsv or .txt table; save the table as CSV and give that")
    if not store.is_remote(data) and not store.exists(data):
        raise UserError(f"{data}: no such file or folder; give a folder of images, a CSV or an s3:// address to --data")
    return _folder(data)


def _folder(root: str) -> Source:
    entries = store.list_files(root)
    splits = _are_splits(root, entries)
    rows, problems = [], []
    for entry in entries:
        parts = nfc(entry.key).split("/")
        split = SPLIT_NAMES.get(parts[0].lower(), "") if splits and len(parts) > 1 else ""
        label = parts[1 if splits else 0].strip() if len(parts) > (2 if splits else 1) else ""
        if not looks_like_image(entry.key):
            problems.append(Problem(entry.path, "other_file", "not named like an image; left out"))
        elif splits and not split:
            problems.append(Problem(entry.path, "no_label", "lies beside train/ and not in it; left out"))
        elif not label:
            problems.append(Problem(entry.path, "no_label", "lies in no class folder; left out"))
        else:
            rows.append(Row(entry, "/".join(parts), label, split))
    if not rows:
        raise UserError(f"{root}: {_nothing(entries)}")
    return Source(tuple(rows), tuple(problems), (), root)


def _are_splits(root: str, entries: list[Entry]) -> bool:
    """Whether the first folders are splits of the classes below them, rather than classes.

    A folder called like a split that holds its images itself is a class among others. UserError where both readings
    are possible: a wrong guess would train on the names of the splits.
    """
    below: dict[str, Counter[str]] = defaultdict(Counter)  # first folder -> images by second folder, "" for none
    for entry in entries:
        if "/" in entry.key and looks_like_image(entry.key):
            first, *rest = entry.key.split("/")
            below[first][rest[0] if len(rest) > 1 else ""] += 1
    named = [top for top in below if top.lower() in _LIKE_SPLITS]
    nested = [top for top in named if below[top].total() > 2 * below[top][""]]
    others = [top for top in below if top not in named]
    if not nested:
        return bool(named) and not others and any(SPLIT_NAMES.get(top.lower()) == "train" for top in named)
    known = {SPLIT_NAMES.get(top.lower(), "") for top in nested}
    images = sum(below[top].total() for top in nested)
    if "train" in known and "" not in known and sum(below[top].total() for top in others) <= images:
        return True
    inner = {top: set(below[top]) - {""} for top in nested}
    alike = len(nested) > 1 or any(inner[nested[0]] & (set(below[top]) - {""}) for top in others)
    if "train" not in known and not alike:
        return False
    classes = _names(set().union(*inner.values()))
    raise UserError(
        f"{root}: are {_names(nested)} splits, or classes? If splits: put train/, validation/ and test/ there, a "
        f"folder per class in each ({classes}), and nothing else. If classes: give them other names, or write a CSV "
        "path,label"
    )


def _names(folders: Iterable[str], most: int = 4) -> str:
    names = sorted(f"{folder}/" for folder in folders)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _nothing(entries: list[Entry]) -> str:
    tables = [entry.key for entry in entries if entry.key.lower().endswith((".csv", ".tsv"))]
    if tables:
        return f"no class folders with images; it holds {tables[0]}: give that file to --data"
    if any(looks_like_image(entry.key) for entry in entries):
        return "its images lie in no class folders; move them into a folder per class, or write a CSV path,label"
    kinds = Counter(entry.key.rpartition(".")[2].lower() for entry in entries if "." in entry.key)
    found = f"among {len(entries)} files (mostly .{kinds.most_common(1)[0][0]}) " if kinds else ""
    return f"no images {found}there; give the folder that holds a folder per class"
