"""The pack: every image decoded and resized once, into one memory-mapped uint8 array that all trials on a node share.

A pack is a folder named by what is in it (the set of content hashes, and how they were decoded and resized). It is
built in one pass: read, hash, decode, resize. An index remembers each file's hash by its version, so that a second run
over unchanged files reads no image. A build that was killed goes on where it stopped; one that ends on a full disk
leaves nothing behind.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from data import cachefolder, packfolder, store
from data.errors import UserError
from data.images import DECODER, Failure, Pixels, decode_resized
from data.journal import Journal
from data.parallel import ordered_map
from data.resizing import Resize

_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPARE_BYTES: Final = 64 * 2**20

Outcome = str | Failure
"""What became of one file: the sha256 of its bytes, or what is wrong with it."""


@dataclass(frozen=True)
class Packed:
    """A complete pack: its folder ("" when no image was good), the outcome of each file in order, sha256 -> row."""

    folder: str
    outcomes: tuple[Outcome, ...]
    rows: dict[str, int]


def build(entries: Sequence[store.Entry], how: Resize, *, cache_dir: str, scope: str, progress: bool = False) -> Packed:
    """The pack of these files, made if it is not there yet.

    `scope` names the collection (its root): files of one scope share an index. Raises UserError where the disk is full
    or a whole bucket cannot be read; a file that cannot be read or decoded is a Failure in `outcomes`.
    """
    cache_dir = cachefolder.resolve(cache_dir)
    with cachefolder.usable(cache_dir):
        return _build(entries, how, cache_dir, scope, progress)


def _build(entries: Sequence[store.Entry], how: Resize, cache_dir: str, scope: str, progress: bool) -> Packed:
    listing = packfolder.digest([how, DECODER, *((entry.path, entry.version) for entry in entries)])
    index = Journal(os.path.join(cache_dir, "index", f"{packfolder.digest([DECODER, scope])}.jsonl"))
    if (found := _complete(entries, how, cache_dir, _known(index, entries))) is not None:
        return found
    os.makedirs(os.path.join(cache_dir, "packs"), exist_ok=True)
    with FileLock(os.path.join(cache_dir, "packs", f".lock-{listing}")):  # one builder for one listing
        known = _known(index, entries)  # the one that we waited for has filled it
        if (found := _complete(entries, how, cache_dir, known)) is not None:
            return found
        folder = os.path.join(cache_dir, "packs", f".building-{listing}")
        try:
            with index:
                return _Build(folder, entries, how, cache_dir, index).run(known, progress)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise _disk_full(cache_dir, len(entries) * packfolder.stride(how)) from error


class _Build:
    """One build under way: pixels go to slots in the order of the listing, and a journal says which slots are done."""

    def __init__(
        self, folder: str, entries: Sequence[store.Entry], how: Resize, cache_dir: str, index: Journal
    ) -> None:
        self.folder, self.entries, self.how, self.cache_dir, self.index = folder, entries, how, cache_dir, index
        self.slots: dict[str, int] = {}
        self.workers = 16 if any(store.is_remote(entry.path) for entry in entries) else (os.cpu_count() or 2) + 1
        # Copies of a bucket that would push each other out of the cache help nobody: the pack is the better copy.
        remote = sum(entry.size for entry in entries if store.is_remote(entry.path))
        self.copies = cache_dir if 2 * remote < cachefolder.LIMIT_BYTES else None

    def run(self, known: dict[store.Entry, Outcome], progress: bool) -> Packed:
        os.makedirs(self.folder, exist_ok=True)
        handle = os.open(os.path.join(self.folder, packfolder.PIXELS), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            journal = Journal(os.path.join(self.folder, "done.jsonl"))
            self._resume(handle, journal)
            with journal:
                outcomes = self._fill(handle, journal, known, progress)
            os.ftruncate(handle, len(self.slots) * packfolder.stride(self.how))
            os.fsync(handle)
        finally:
            os.close(handle)
        return self._finish(outcomes)

    def _resume(self, handle: int, journal: Journal) -> None:
        """Take over the slots that an earlier, killed build filled, as far as their pixels are what it wrote."""
        stride = packfolder.stride(self.how)
        for record in journal.records():
            slot, sha = len(self.slots), record.get("sha256")
            pixels = os.pread(handle, stride, slot * stride)
            whole = len(pixels) == stride and zlib.crc32(pixels) == record.get("crc")
            if record.get("slot") != slot or not isinstance(sha, str) or not whole:
                break
            self.slots[sha] = slot

    def _fill(self, handle: int, journal: Journal, known: dict[store.Entry, Outcome], progress: bool) -> list[Outcome]:
        settled = {
            entry
            for entry, outcome in known.items()
            if (outcome in self.slots if isinstance(outcome, str) else not _unreadable(outcome))
        }
        todo = [entry for entry in self.entries if entry not in settled]
        self._check_space(len(todo))
        outcomes = dict(known)
        older = packfolder.older(self.cache_dir, self.how)

        def prepare(entry: store.Entry) -> tuple[store.Entry, Outcome, Pixels | None]:
            sha = known.get(entry)
            if isinstance(sha, str) and sha in older:
                return entry, sha, older[sha][0][older[sha][1]]
            blob = store.try_read(entry, cache_dir=self.copies)
            if isinstance(blob, Failure):
                return entry, blob, None
            sha = hashlib.sha256(blob).hexdigest()
            if sha in self.slots:
                return entry, sha, None
            if sha in older:
                return entry, sha, older[sha][0][older[sha][1]]
            blob, pixels = self._decode(entry, blob)
            if isinstance(pixels, Failure):
                return entry, pixels, None
            return entry, hashlib.sha256(blob).hexdigest(), pixels

        bar = tqdm(total=len(todo), desc="reading images", unit="image", disable=not progress, leave=False)
        with bar, contextlib.closing(ordered_map(prepare, todo, self.workers)) as prepared:
            for entry, outcome, pixels in prepared:
                if isinstance(outcome, str) and pixels is not None and outcome not in self.slots:
                    self._put(handle, journal, outcome, pixels)
                if known.get(entry) != outcome:
                    outcomes[entry] = outcome
                    _remember(self.index, entry, outcome)
                bar.update()
        return [outcomes[entry] for entry in self.entries]

    def _decode(self, entry: store.Entry, blob: bytes) -> tuple[bytes, Pixels | Failure]:
        """The bytes and their pixels. What fails is fetched once more: the copy may be at fault, not the object."""
        pixels = decode_resized(blob, self.how)
        if isinstance(pixels, Failure) and self.copies and store.drop_copy(entry, cache_dir=self.copies):
            again = store.try_read(entry, cache_dir=self.copies)
            if not isinstance(again, Failure) and again != blob:
                return again, decode_resized(again, self.how)
        return blob, pixels

    def _put(self, handle: int, journal: Journal, sha: str, pixels: Pixels) -> None:
        slot = len(self.slots)
        view = memoryview(np.ascontiguousarray(pixels).tobytes())
        # Written, not mapped: on a full disk a write is an error that we can report, a store to a mapping kills us.
        done = 0
        while done < len(view):
            done += os.pwrite(handle, view[done:], slot * len(view) + done)
        journal.append({"slot": slot, "sha256": sha, "crc": zlib.crc32(view)})
        self.slots[sha] = slot

    def _check_space(self, images: int) -> None:
        needed = images * packfolder.stride(self.how) + _SPARE_BYTES
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, "not enough free space")

    def _finish(self, outcomes: list[Outcome]) -> Packed:
        if not self.slots:
            shutil.rmtree(self.folder)
            return Packed("", tuple(outcomes), {})
        used = {outcome for outcome in outcomes if isinstance(outcome, str)}
        packfolder.write_meta(self.folder, list(self.slots), self.how)
        os.unlink(os.path.join(self.folder, "done.jsonl"))
        target = packfolder.place(self.cache_dir, used, self.how)
        packfolder.settle(self.folder, target, used)
        return Packed(target, tuple(outcomes), packfolder.rows(target))


def _known(index: Journal, entries: Sequence[store.Entry]) -> dict[store.Entry, Outcome]:
    """What the index says about these files, each in this very version. What it does not say in full is passed over."""
    said: dict[tuple[object, object], Outcome] = {}
    for record in index.records():
        key = (record.get("path"), record.get("version"))
        match record:
            case {"code": str(code), "message": str(message)}:
                said[key] = Failure(code, message)
            case {"sha256": str(sha)}:
                said[key] = sha
    return {entry: said[key] for entry in entries if entry.version and (key := (entry.path, entry.version)) in said}


def _remember(index: Journal, entry: store.Entry, outcome: Outcome) -> None:
    if entry.version:
        said = {"sha256": outcome} if isinstance(outcome, str) else asdict(outcome)
        index.append({"path": entry.path, "version": entry.version, **said})


def _complete(
    entries: Sequence[store.Entry], how: Resize, cache_dir: str, known: dict[store.Entry, Outcome]
) -> Packed | None:
    """The pack that is there already, or None. Files that could not be read are asked for again: that may be mended."""
    again = [entry for entry in dict.fromkeys(entries) if not entry.version or _unreadable(known.get(entry))]
    if any(entry not in known and entry.version for entry in entries):
        return None
    said = known | dict(ordered_map(lambda entry: (entry, _look(entry, how)), again, workers=16))
    outcomes = tuple(said[entry] for entry in entries)
    used = {outcome for outcome in outcomes if isinstance(outcome, str)}
    folder = packfolder.place(cache_dir, used, how) if used else ""
    rows = packfolder.rows(folder) if used else {}
    return Packed(folder, outcomes, rows) if used <= rows.keys() else None


def _look(entry: store.Entry, how: Resize) -> Outcome:
    blob = store.try_read(entry)
    if isinstance(blob, Failure):
        return blob
    pixels = decode_resized(blob, how)
    return pixels if isinstance(pixels, Failure) else hashlib.sha256(blob).hexdigest()


def _unreadable(outcome: Outcome | None) -> bool:
    return isinstance(outcome, Failure) and outcome.code == "unreadable"


def _disk_full(cache_dir: str, needed: int) -> UserError:
    free = shutil.disk_usage(cache_dir).free
    return UserError(
        f"{cache_dir}: the disk is full: the packed images take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
        "free some space, give a smaller --image-size, or another --cache-dir"
    )
