"""The search's memory, written so that a kill at any moment leaves a whole copy of it."""

import contextlib
import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import ray.tune

from data import store
from data.errors import UserError
from tune.outputs import STATE_MARK, RunFolder
from tune.trials import TuneTrial

# Tune's own names for: trials and controller, callbacks, search generator, searcher.
_PREFIXES = ("experiment_state-", "callback-states-", "search_gen_state-", "searcher-state-")
# Files of the run that change with the state and lie on this machine only: with the results in a bucket each copy of
# the state holds them too, so that another machine finds a study that knows all of the state's trials.
_BESIDE = ("study.db", "spending.json")
_FOLDER = "run/"


class KeepState(ray.tune.Callback):
    """Copies Tune's state to one file of the run, in one step, each time that Tune has written it.

    Tune writes its state as several files, each over its predecessor, in a thread of its own: a kill in between leaves
    files that are cut off or do not belong together. Between two steps of its loop the files are whole, and so are
    the study and the meter's: they are written by the loop itself.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._changed = 0

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        self._copy(trials)

    def on_experiment_end(self, trials: list[TuneTrial], **_: Any) -> None:
        self._copy(trials)

    def _copy(self, trials: list[TuneTrial]) -> None:
        storage = trials[0].storage if trials else None
        staging = storage.experiment_driver_staging_path if storage else ""
        names = _newest(os.listdir(staging)) if os.path.isdir(staging) else []
        changed = max((os.stat(os.path.join(staging, name)).st_mtime_ns for name in names), default=0)
        if changed == self._changed:
            return
        files = {name: os.path.join(staging, name) for name in names}
        if self.run.remote:
            files |= {f"{_FOLDER}{name}": path for name in _BESIDE if os.path.exists(path := self.run.path(name))}
        blob = _zipped(files)
        try:
            store.write(_path(self.run), blob)
            if self.run.remote:
                store.write(self.run.path(STATE_MARK), _digest(blob))
        except UserError as error:  # the search goes on with an older copy, and the next one is tried
            print(f"warning: {error}", file=sys.stderr)
            return
        self._changed = changed


def _zipped(files: dict[str, str]) -> bytes:
    """The files at these paths, by their names in the archive."""
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        for name, path in files.items():
            # A study shrinks to a seventh; on a disk, where there is none, the rest is not worth the time.
            archive.write(path, name, zipfile.ZIP_DEFLATED if name.startswith(_FOLDER) else zipfile.ZIP_STORED)
    return blob.getvalue()


def _digest(blob: bytes) -> bytes:
    return hashlib.sha256(blob).hexdigest().encode()


def _newest(names: list[str]) -> list[str]:
    """Of each kind of file the newest: every resume begins new ones, whose names end with their time."""
    kinds = [[name for name in names if name.startswith(prefix)] for prefix in _PREFIXES]
    return [max(kind) for kind in kinds if kind]


def has_state(run: RunFolder) -> bool:
    """Whether a search has begun in the run: Tune's state has been copied once."""
    return store.exists(_path(run))


def bring_study(run: RunFolder) -> None:
    """Before a resume, with the results in a bucket: the study and what was spent, as the last copy of the state has
    them, where this machine's own are of another copy, or there are none.

    Where they are of this copy they hold what has happened since, and stay.
    """
    if not run.remote or not has_state(run):
        return
    blob, mark = store.read(_path(run)), run.path(STATE_MARK)
    if os.path.exists(mark) and store.read(mark) == _digest(blob):
        return
    with _opened(run, blob) as archive:
        for name in archive.namelist():
            if name.startswith(_FOLDER):
                store.write(run.path(name.removeprefix(_FOLDER)), archive.read(name))


def put_back(run: RunFolder) -> bool:
    """Make the last whole copy of the state the one that Tune will find; False where there is none to put back."""
    if not has_state(run):
        return False
    folder = store.join(run.ray_storage, "tune")
    for entry in store.list_files(folder, recursive=False):
        if entry.key.startswith(_PREFIXES):
            store.delete(entry.path)
    with _opened(run, store.read(_path(run))) as archive:
        for name in archive.namelist():
            if not name.startswith(_FOLDER):
                store.write(store.join(folder, name), archive.read(name))
    return True


@contextlib.contextmanager
def _opened(run: RunFolder, blob: bytes) -> Iterator[zipfile.ZipFile]:
    """UserError where the copy, or a file in it, is damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise UserError(f"{_path(run)} is damaged ({error}); begin a new search in another --out") from error


def _path(run: RunFolder) -> str:
    return store.join(run.ray_storage, "state.zip")
