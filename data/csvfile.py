"""Labels in a text table: `path,label[,group][,split]` with a header, or the deep-sea target file without one.

The target file has three columns, index, filename and label, apart by tabs or commas. Columns may be named in any
case; a byte order mark, Windows line ends, semicolons and tabs are understood.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from data import rowfiles, store
from data.errors import UserError
from data.manifest import SPLIT_NAMES, Row, Source, looks_like_image, nfc
from data.problems import Problem
from data.store import Entry
from data.words import counted

_PATH: Final = ("path", "filename", "file")
_LABEL: Final = ("label", "class")
_OBJECT: Final = re.compile(r"s3://[A-Za-z0-9._-]{1,255}/.+")
_TARGET: Final = ("index", "path", "label")
_UNCLOSED: Final = "a quote is opened in this line and not closed in it; close or delete it"
OURS: Final = ("path", "label", "group", "split", "key")
"""The columns of a manifest that this project wrote: its `key` is taken over, so that it splits as it did before."""


@dataclass(frozen=True)
class _Line:
    number: int
    fields: dict[str, str]


def read(path: str, images: str) -> Source:
    """The rows of the table at `path`, whose relative paths lie under `images`. Raises UserError on a useless table."""
    columns, lines, problems = _parse(path, _text(path))
    stated: list[tuple[_Line, str, str]] = []  # line, key (relative posix path, or an absolute address), label
    for line in lines:
        name, label = line.fields["path"], line.fields["label"]
        key = rowfiles.key_of(name, images)
        if store.is_remote(name) and not _OBJECT.fullmatch(name):
            problems.append(Problem(name, "bad_path", "no bucket and key in the address; left out", line.number))
        elif not name:
            problems.append(Problem(path, "no_path", "the row names no image; left out", line.number))
        elif not label:
            problems.append(Problem(name, "no_label", "left out", line.number))
        elif key is None:
            problems.append(Problem(name, "outside", f"not under {images}; left out", line.number))
        else:
            stated.append((line, key, label))
    files, unnamed = rowfiles.find(images, [key for _, key, _ in stated], ours=columns == OURS)
    resolved = [
        (line, files.get(key) or Entry(rowfiles.address(images, key), key, 0, ""), label) for line, key, label in stated
    ]
    kept, found = _once(resolved)
    problems += found
    rows = []
    for line, entry, label in kept:
        split, problem = _split(line, entry.path)
        problems += problem
        key = line.fields["key"] if columns == OURS else nfc(rowfiles.relative(entry.key))
        rows.append(Row(entry, key, label, split, line.fields, line.number))
    return Source(tuple(rows), (*problems, *unnamed), columns, images, _unknown_splits(rows))


def _text(path: str) -> str:
    blob = store.read(path)
    if blob.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return blob.decode("utf-16")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: cut off or damaged ({error}); save it again as CSV in UTF-8") from error
    try:
        return blob.decode("utf-8-sig")
    except UnicodeDecodeError:
        return blob.decode("cp1252", errors="replace")  # what Excel on Windows writes


def _parse(path: str, text: str) -> tuple[tuple[str, ...], list[_Line], list[Problem]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise UserError(f"{path}: the file is empty; it needs a header path,label and a row per image")
    delimiter = max(",;\t", key=first.count)
    columns: tuple[str, ...] = ()
    lines: list[_Line] = []
    problems: list[Problem] = []
    for number, cells in _records(path, text, delimiter, problems):
        if not columns:
            columns = _columns(path, cells)
            if columns != _TARGET:
                continue
        if len(cells) > len(columns):
            detail = f"{len(cells)} fields, the header has {len(columns)}; the surplus is passed over"
            problems.append(Problem(cells[0], "short_row", detail, number))
        fields = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
        if not any("\n" in fields.get(name, "") for name in OURS):
            lines.append(_Line(number, fields))
        elif any("\n" in cell and delimiter in cell for cell in cells):  # rows that have become part of a field
            raise UserError(f"{path}, line {number}: {_UNCLOSED}")
        else:
            problems.append(Problem(" ".join(cells[0].split()), "bad_row", "a field of two lines; left out", number))
    if not lines:
        raise UserError(f"{path}: a header and no rows; write a row per image")
    return columns, lines, problems


def _records(path: str, text: str, delimiter: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """(the line that it begins in, its fields) for each row that is not empty; adds the rows that are malformed."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > number or "unexpected end" in str(error):
                raise UserError(f"{path}, line {number}: {_UNCLOSED}") from error
            problems.append(Problem("", "bad_row", f"{error}; left out", number))
            continue
        cells = [cell.strip().replace("\r\n", "\n").replace("\r", "\n") for cell in fields]
        if any(cells):
            yield number, cells


def _columns(path: str, cells: list[str]) -> tuple[str, ...]:
    """The names of the columns, `path` and `label` by these very names; `_TARGET` for a file without a header."""
    names = [cell.lower() for cell in cells]
    for wanted, aliases in (("path", _PATH), ("label", _LABEL)):
        if found := [alias for alias in aliases if alias in names]:
            names[names.index(found[0])] = wanted
    if twice := sorted(name for name in OURS if names.count(name) > 1):
        raise UserError(f"{path}: two columns are called {twice[0]}; delete or rename one in its first line")
    if "path" in names and "label" in names:
        return tuple(names)
    if len(cells) == 3 and re.fullmatch(r"-?\d+", cells[0]) and looks_like_image(cells[1]):
        return _TARGET
    seen = ", ".join(cells)[:200]
    raise UserError(
        f"{path}: needs the columns path and label (group and split are optional), found: {seen}; "
        "rename the columns in its first line, or give a file of index, filename, label without a header"
    )


def _once(stated: list[tuple[_Line, Entry, str]]) -> tuple[list[tuple[_Line, Entry, str]], list[Problem]]:
    """Each file once: of equal rows the first, of rows that disagree about the label none."""
    labels: dict[str, set[str]] = defaultdict(set)
    for _, entry, label in stated:
        labels[entry.path].add(label)
    kept, problems, seen = [], [], set()
    for line, entry, label in stated:
        path = entry.path
        if len(labels[path]) > 1:
            said = ", ".join(map(repr, sorted(labels[path])))
            problems.append(Problem(path, "two_labels", f"rows label this file {said}; all left out", line.number))
        elif path in seen:
            problems.append(Problem(path, "duplicate_row", "an earlier row names this file; left out", line.number))
        else:
            seen.add(path)
            kept.append((line, entry, label))
    return kept, problems


def _split(line: _Line, path: str) -> tuple[str, list[Problem]]:
    said = line.fields.get("split", "")
    if not said or said.lower() in SPLIT_NAMES:
        return SPLIT_NAMES.get(said.lower(), ""), []
    return "", [Problem(path, "unknown_split", f"split {said!r}; read as empty", line.number)]


def _unknown_splits(rows: list[Row]) -> tuple[str, ...]:
    said = Counter(row.columns.get("split", "") for row in rows if not row.split)
    return tuple(
        f"The split {value!r} of {counted(count, 'image')} is not known and was read as empty: write train, "
        "validation or test."
        for value, count in sorted(said.items())
        if value
    )
