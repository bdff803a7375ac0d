"""Where a run leaves what it made: the names of the files, and the way to a bucket."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from data import store
from data.errors import UserError
from tune.settings import CommandConfig, changed_flags, from_dict

_SETTINGS = "settings.json"
_SERIAL = "published.json"
STATE_MARK = "state.sha256"
"""Which copy of Ray's state the run's own files belong to (`tune.snapshots`)."""
_LAST = ("bundle/bundle.json", "report.json", STATE_MARK)
Settings = TypeVar("Settings", bound=CommandConfig)
_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """The results of one search or training run.

    `local` is the folder that is written to; with an `s3://` `out` it lies in the cache, and `publish` copies it up.
    Ray's own state and checkpoints go to `ray_storage` directly.
    """

    out: str
    local: str

    @property
    def remote(self) -> bool:
        return store.is_remote(self.out)

    @property
    def ray_storage(self) -> str:
        return store.join(self.out, "ray")

    def path(self, name: str) -> str:
        return os.path.join(self.local, name)

    @property
    def bundle(self) -> str:
        """The bundle's address as users are told it."""
        return store.join(self.out, "bundle")

    def write_json(self, name: str, value: Any) -> None:
        store.write(self.path(name), json.dumps(value, indent=1, ensure_ascii=False).encode())

    def read_json(self, name: str) -> Any:
        return json.loads(store.read(self.path(name)))

    def publish(self) -> None:
        """Bring the bucket up to date with the local folder; nothing to do for a local run."""
        if self.remote:
            store.upload_folder(self.local, self.out, last=_LAST)
            # Counted once all of it has arrived: a half that could not be published must not pass for a newer one.
            serial = json.dumps(self.serial(self.local) + 1).encode()
            store.write(store.join(self.out, _SERIAL), serial)
            store.write(self.path(_SERIAL), serial)

    def serial(self, half: str) -> int:
        """How often the local or the bucket's half of the run had been published when it was written; 0: never."""
        path = store.join(half, _SERIAL)
        return int(json.loads(store.read(path))) if store.exists(path) else 0


def find_run(out: str, *, name: str, resume: bool, cache_dir: str, kind: str) -> RunFolder:
    """The folder of a new run, not made yet, or that of the run to go on with.

    A folder with results in it is never written over: without `resume` it is refused. `name` goes into the folder's
    name where `out` is empty.
    """
    chosen = out or _new_folder(name)
    chosen = chosen if store.is_remote(chosen) else os.path.realpath(chosen)  # runs/latest is a link
    run = RunFolder(chosen, _staging(chosen, cache_dir) if store.is_remote(chosen) else chosen)
    if not resume:
        _refuse_occupied(run, kind)
        return run
    bring_newer(run)
    if not os.path.exists(run.path(_SETTINGS)):
        raise UserError(f"{chosen} holds no {kind} to resume (no {_SETTINGS}); leave --resume out to begin one")
    return run


def bring_newer(run: RunFolder) -> None:
    """Take a bucket's half of a run to go on with where it is newer than the local one."""
    if run.remote and run.serial(run.out) > run.serial(run.local):
        # On the machine that was killed the files here are as new or newer; elsewhere they are what reached the bucket.
        for entry in store.list_files(run.out, recursive=False):  # Ray reads its own folder by itself
            store.write(run.path(entry.key), store.read(entry.path))


def _refuse_occupied(run: RunFolder, kind: str) -> None:
    if not run.remote and os.path.exists(run.local) and not os.path.isdir(run.local):
        raise UserError(f"{run.out} is a file; give --out a folder")
    occupied = store.list_files(run.out) if run.remote else os.path.isdir(run.local) and os.listdir(run.local)
    if occupied:
        raise UserError(
            f"{run.out} holds files already and nothing in it is written over; "
            f"choose another --out, or --resume to go on with the {kind} in it"
        )


@contextlib.contextmanager
def working_on(run: RunFolder) -> Iterator[None]:
    """Hold the run against other commands on this machine; two searches in one folder would spoil both."""
    try:
        os.makedirs(run.local, exist_ok=True)
        lock = FileLock(run.path(_LOCK))
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another command is working on {run.out}; wait for it, or give another --out") from None
    except OSError as error:
        raise UserError(f"{run.out}: cannot be written ({error}); give another --out or free the disk") from error
    try:
        yield
    finally:
        lock.release()


def begin(run: RunFolder, settings: Any, kind: str) -> None:
    """Make a new run: `settings` (a dataclass) are kept beside the results, for `resume` to read."""
    for name in set(os.listdir(run.local)) - {_LOCK}:
        # Only the local half of a run in a bucket can hold anything: an earlier run's that was deleted from the bucket.
        path = run.path(name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    remember(run, settings, kind)


def remember(run: RunFolder, settings: Any, kind: str) -> None:
    """Keep `settings` for the next resume: a resumed run may have been given another budget, or another pick."""
    run.write_json(_SETTINGS, {"kind": kind, "out": run.out, "settings": dataclasses.asdict(settings)})


def saved_settings(run: RunFolder, given: Settings, kind: str) -> Settings:
    """The settings that a run was begun with; `UserError` where `given` says otherwise or they cannot be read."""
    try:
        saved = run.read_json(_SETTINGS)
        begun_as, begun_kind = saved["out"], saved["kind"]
        settings = from_dict(type(given), saved["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.path(_SETTINGS)} is damaged ({error}); begin a new {kind} in another --out") from error
    if begun_kind != kind:
        raise UserError(f"{run.out} holds a {begun_kind}, not a {kind}; resume it with the command that began it")
    if begun_as != run.out:
        raise UserError(
            f"{run.out} was begun as {begun_as}, and Ray's state holds that address; move it back there to resume it"
        )
    changed = changed_flags(given, settings)
    if changed:
        raise UserError(
            f"a resumed {kind} keeps the settings it was begun with; leave out {', '.join(changed)}, or begin a new one"
        )
    return settings


def _new_folder(name: str) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return os.path.abspath(os.path.join("runs", f"{name}-{stamp}"))


def _staging(remote: str, cache_dir: str) -> str:
    """The local folder of a run in a bucket: the same one for the same address."""
    return os.path.join(cache_dir, "runs", hashlib.sha256(remote.encode()).hexdigest()[:16])


def point_latest(folder: str) -> None:
    """Let runs/latest name the newest finished run: a next command can be written before its name is known."""
    if os.path.basename(os.path.dirname(folder)) != "runs":
        return
    link = os.path.join(os.path.dirname(folder), "latest")
    if os.path.lexists(link) and not os.path.islink(link):
        return
    temporary = f"{link}.{os.getpid()}"
    try:
        os.symlink(os.path.basename(folder), temporary)
        os.replace(temporary, link)
    except OSError:  # a file system without links: the full name is printed anyway
        return
