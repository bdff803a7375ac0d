"""A folder of a few files that is there whole or not at all, in the place of the one that was there before."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from data.errors import UserError


def replace_folder(folder: Path, files: Mapping[str, bytes], *, mark: str) -> None:
    """Write `files` (name -> content) as `folder`. UserError if it holds something else: no file called `mark`."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, not a folder; give another place for the bundle")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise UserError(f"{folder}: holds something that is no bundle; give an empty or a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    old = fresh.with_name(fresh.name + ".old")
    try:
        fresh.chmod(0o755)  # mkdtemp makes it for the owner alone
        for name, blob in files.items():
            (fresh / name).write_bytes(blob)
        if folder.exists():
            os.rename(folder, old)  # a rename cannot replace a folder that holds files
        os.rename(fresh, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the bundle ({error}); free some space or give another folder"
        ) from error
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(fresh, ignore_errors=True)
