"""The search's memory, written so that a kill at any moment leaves a whole copy of it."""

import io
import os
import sys
import zipfile
from typing import Any

import ray.tune

from data import store
from data.errors import UserError
from tune.outputs import RunFolder
from tune.trials import TuneTrial

# Tune's own names for: trials and controller, callbacks, search generator, searcher.
_PREFIXES = ("experiment_state-", "callback-states-", "search_gen_state-", "searcher-state-")


class KeepState(ray.tune.Callback):
    """Copies Tune's state to one file of the run, in one step, each time that Tune has written it.

    Tune writes its state as several files, each over its predecessor, in a thread of its own: a kill in between leaves
    files that are cut off or do not belong together. Between two steps of its loop the files are whole.
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
        blob = io.BytesIO()
        with zipfile.ZipFile(blob, "w") as archive:
            for name in names:
                archive.write(os.path.join(staging, name), name)
        try:
            store.write(_path(self.run), blob.getvalue())
        except UserError as error:  # the search goes on with an older copy, and the next one is tried
            print(f"warning: {error}", file=sys.stderr)
            return
        self._changed = changed


def _newest(names: list[str]) -> list[str]:
    """Of each kind of file the newest: every resume begins new ones, whose names end with their time."""
    kinds = [[name for name in names if name.startswith(prefix)] for prefix in _PREFIXES]
    return [max(kind) for kind in kinds if kind]


def has_state(run: RunFolder) -> bool:
    """Whether a search has begun in the run: Tune's state has been copied once."""
    return store.exists(_path(run))


def put_back(run: RunFolder) -> bool:
    """Make the last whole copy of the state the one that Tune will find; False where there is none to put back."""
    if not has_state(run):
        return False
    folder = store.join(run.ray_storage, "tune")
    for entry in store.list_files(folder, recursive=False):
        if entry.key.startswith(_PREFIXES):
            store.delete(entry.path)
    try:
        with zipfile.ZipFile(io.BytesIO(store.read(_path(run)))) as archive:
            for name in archive.namelist():
                store.write(store.join(folder, name), archive.read(name))
    except zipfile.BadZipFile as error:
        raise UserError(f"{_path(run)} is damaged ({error}); begin a new search in another --out") from error
    return True


def _path(run: RunFolder) -> str:
    return store.join(run.ray_storage, "state.zip")
