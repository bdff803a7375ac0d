"""Where a run leaves what it made: the names of the files, and the way to a bucket."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from typing import Any

from data import store
from data.errors import UserError


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
            store.upload_folder(self.local, self.out)


def open_run(out: str, *, name: str, resume: bool, cache_dir: str, settings: Any, kind: str) -> RunFolder:
    """Make the folder of a new run, or find that of the run to go on with.

    A folder with results in it is never written over: without `resume` it is refused. `name` goes into the folder's
    name where `out` is empty. `settings` (a dataclass) are kept beside the results, for `resume` to read.
    """
    chosen = out or _new_folder(name)
    local = _staging(chosen, cache_dir) if store.is_remote(chosen) else chosen
    run = RunFolder(chosen, local)
    if resume:
        if run.remote and not os.path.exists(run.path("settings.json")):
            # On the machine that was killed the files here are the newest; elsewhere they are what reached the bucket.
            for entry in store.list_files(run.out, recursive=False):  # Ray reads its own folder by itself
                store.write(run.path(entry.key), store.read(entry.path))
        if not os.path.exists(run.path("settings.json")):
            raise UserError(f"{chosen} holds no {kind} to resume (no settings.json); leave --resume out to begin one")
        return run
    occupied = bool(store.list_files(chosen)) if run.remote else os.path.isdir(local) and bool(os.listdir(local))
    if occupied:
        raise UserError(
            f"{chosen} holds files already and nothing in it is written over; "
            f"choose another --out, or --resume to go on with the {kind} in it"
        )
    if run.remote:  # of an earlier run that has been deleted from the bucket
        shutil.rmtree(local)
    os.makedirs(local, exist_ok=True)
    run.write_json("settings.json", {"kind": kind, "out": chosen, "settings": dataclasses.asdict(settings)})
    if not out:
        _point_latest(local)
    return run


def _new_folder(name: str) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return os.path.abspath(os.path.join("runs", f"{name}-{stamp}"))


def _staging(remote: str, cache_dir: str) -> str:
    """The local folder of a run in a bucket: the same one for the same address."""
    staging = os.path.join(cache_dir, "runs", hashlib.sha256(remote.encode()).hexdigest()[:16])
    os.makedirs(staging, exist_ok=True)
    return staging


def _point_latest(folder: str) -> None:
    """Let runs/latest name the newest run, so that a next command can be written down before its name is known."""
    link = os.path.join(os.path.dirname(folder), "latest")
    if os.path.lexists(link) and not os.path.islink(link):
        return
    temporary = f"{link}.{os.getpid()}"
    try:
        os.symlink(os.path.basename(folder), temporary)
        os.replace(temporary, link)
    except OSError:  # a file system without links: the full name is printed anyway
        return
