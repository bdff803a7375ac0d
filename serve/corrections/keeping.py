"""People's corrections: each image once, with the label that was last said of it, in a folder or bucket.

    FOLDER/images/HASH.jpg     the image as it was sent
    FOLDER/rows/HASH.csv       what was last said of it: a header and one row
    FOLDER/corrections.csv     all rows together; `tune/search.py --data` takes it

The rows are the truth. With a file for each image, replicas that write at once lose nothing and tear nothing, on a disk
and in S3 alike, where no object can be appended to. The table is made from the rows by whoever wrote one.
"""

import asyncio
import csv
import hashlib
import io
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from data import store
from data.errors import UserError
from data.images import Failure, decode
from serve.errors import ApiError
from serve.labelling import spreadsheet_safe

logger = logging.getLogger("eagleray.serve")

TABLE: Final = "corrections.csv"
COLUMNS: Final = (
    *("path", "label", "group"),  # what a search reads
    *("predicted", "probability", "model", "corrected_by", "request", "time", "original"),
)
# How a file of each format that `data.images` reads begins: (offset, bytes, suffix).
_BEGINNINGS: Final = (
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x89PNG", ".png"),
    (0, b"GIF8", ".gif"),
    (8, b"WEBP", ".webp"),
    (0, b"II", ".tif"),
    (0, b"MM", ".tif"),
    (0, b"BM", ".bmp"),
    (4, b"ftyp", ".avif"),
    (0, b"P", ".ppm"),
)
_MOST_TURNS: Final = 20


@dataclass(frozen=True)
class Correction:
    """What a person said an image shows, and what the model had said. The texts are checked (`correctionroutes`)."""

    blob: bytes
    label: str
    group: str = ""
    predicted: str = ""
    probability: str = ""
    model: str = ""
    corrected_by: str = ""
    """The name of the caller's key."""
    request: str = ""
    original: str = ""
    """The file's name where it came from."""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Saved:
    """Where the image lies below the folder, and the label that it had there before, None if it is new."""

    path: str
    label: str
    before: str | None


class Corrections:
    """A folder of corrections, within limits of count and size that hold across restarts and replicas.

    Replicas that add a last one in the same moment may together exceed the limits by one each.
    """

    def __init__(self, folder: str, *, max_rows: int, max_bytes: int) -> None:
        self.folder = folder
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._rows: dict[str, tuple[str, list[str]]] = {}  # file name -> (version, cells), so that each is read once
        self._tabled: dict[str, str] = {}  # file name -> version, as in the table that we wrote last
        # One at a time: to decode an image takes up to 0.8 GB (data.images.MAX_PIXELS), and a count that another thread
        # is changing is no limit.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="corrections")

    async def add(self, correction: Correction) -> Saved:
        """Keep an image with its label; ApiError 422 (no image), 507 (full) or 503 (the place cannot be written).

        The same image with the same label is kept once. With another label, the later one counts.
        """
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._add, correction)

    def close(self) -> None:
        """What was handed in is still written; nothing new is taken."""
        self._worker.shutdown(wait=False)

    def refresh(self) -> int:
        """Make the table hold all rows; returns how many. UserError where the place cannot be read or written.

        Replicas may do this at once. Who writes the table looks at the rows again afterwards, so the last to write it
        has seen every row whose writer is done; a replica that dies in between leaves that to the next correction.
        """
        for _ in range(_MOST_TURNS):
            listed = self._list("rows")
            versions = {name: entry.version for name, entry in listed.items()}
            if versions == self._tabled:
                break
            self._rows = {name: known for name, known in self._rows.items() if name in listed}
            self._read_rows(listed)
            rows = sorted((cells for _, cells in self._rows.values()), key=lambda cells: (cells[-2], cells[0]))
            store.write(store.join(self.folder, TABLE), _csv(rows))
            self._tabled = versions
        return len(self._rows)

    def _add(self, correction: Correction) -> Saved:
        pixels = decode(correction.blob)
        if isinstance(pixels, Failure):
            raise ApiError(422, pixels.code, pixels.message)
        del pixels
        name = hashlib.sha256(correction.blob).hexdigest()[:32]
        path = f"images/{name}{_suffix(correction.blob)}"
        try:
            before = self._keep(correction, name, path)
        except UserError as error:
            raise _unwritable(error) from error
        try:
            self.refresh()
        except UserError as error:  # the row is safe, and the next correction makes the table anew
            logger.warning("%s is behind its rows: %s", TABLE, error)
        return Saved(path, correction.label, before)

    def _keep(self, correction: Correction, name: str, path: str) -> str | None:
        rows, images = self._list("rows"), self._list("images")
        row = f"{name}.csv"
        if row in rows:
            self._read_rows({row: rows[row]})
        else:
            self._refuse_full(len(rows), sum(e.size for n, e in images.items() if f"images/{n}" != path), correction)
        there = self._rows.get(row) if row in rows else None
        before = there[1][1] if there else None
        cells = [path, correction.label, correction.group, *_remarks(correction)]
        if path.removeprefix("images/") not in images:
            store.write(store.join(self.folder, *path.split("/")), correction.blob)
        if there is None or there[1][:3] != cells[:3]:
            store.write(store.join(self.folder, "rows", row), _csv([cells]))
        return before

    def _refuse_full(self, rows: int, used: int, correction: Correction) -> None:
        if rows < self._max_rows and used + len(correction.blob) <= self._max_bytes:
            return
        message = (
            f"no room for another correction ({rows:,} images, {used / 2**20:.1f} MiB are kept): ask whoever runs this "
            "endpoint to use them and give a new folder, or raise max_corrections or max_corrections_mb"
        )
        raise ApiError(507, "corrections_full", message)

    def _list(self, part: str) -> dict[str, store.Entry]:
        try:
            return {entry.key: entry for entry in store.list_files(store.join(self.folder, part), recursive=False)}
        except store.NotThereError:
            if store.is_remote(self.folder):
                raise
            return {}

    def _read_rows(self, listed: Mapping[str, store.Entry]) -> None:
        """Take in those rows that are not known in this version."""
        new = {e.path: e for name, e in listed.items() if self._rows.get(name, ("", []))[0] != e.version}
        for path, blob in store.read_many(new.values()):
            name, cells = new[path].key, _cells(blob)
            if cells is None:
                logger.warning("%s: not a correction's row; left out of %s", path, TABLE)
                self._rows.pop(name, None)
            else:
                self._rows[name] = (new[path].version, cells)


def _remarks(correction: Correction) -> list[str]:
    texts = (correction.predicted, correction.probability, correction.model, correction.corrected_by)
    return [spreadsheet_safe(text) for text in (*texts, correction.request, correction.time, correction.original)]


def _suffix(blob: bytes) -> str:
    """Of an image that decodes."""
    return next((suffix for at, text, suffix in _BEGINNINGS if blob[at : at + len(text)] == text), ".img")


def _csv(rows: list[list[str]]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([COLUMNS, *rows])
    return out.getvalue().encode()


def _cells(blob: bytes | Failure) -> list[str] | None:
    """The one row of a row file; None for what is none."""
    if isinstance(blob, Failure):
        return None
    try:
        header, cells = csv.reader(io.StringIO(blob.decode(), newline=""), strict=True)
    except (ValueError, csv.Error):
        return None
    return cells if tuple(header) == COLUMNS and len(cells) == len(COLUMNS) else None


def _unwritable(error: UserError) -> ApiError:
    # What is wrong (a path, a bucket) is the operator's to know, not the caller's.
    logger.error("a correction could not be kept: %s", error)
    message = (
        "the correction could not be kept: try again later, and tell whoever runs this endpoint (its log says why)"
    )
    return ApiError(503, "corrections_unwritable", message)
