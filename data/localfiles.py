"""Files on this disk: listed, read and written whole, and what can go wrong with them in words."""

import contextlib
import errno
import os
import posixpath
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.errors import UserError

_ELSE: Final = "give another place"
_OF_THE_MACHINE: Final = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What is wrong with all files, not with one."""


class NotThereError(UserError):
    """The file, folder, object or bucket does not exist."""


class NotAllowedError(UserError):
    """The file or object exists, or may exist, but may not be read or written."""


class NotReadableError(UserError):
    """Nothing that could be read: a link to itself, a name that is too long, a pipe, a bad place on the disk."""


@dataclass(frozen=True)
class Entry:
    """One file: `path` opens it, `key` is its posix path below the listed base, `version` changes with it.

    `version` is the ETag in S3 and "size-mtime_ns" on disk; "" where the file could not be looked at.
    """

    path: str
    key: str
    size: int
    version: str


def walk(base: str, recursive: bool) -> Iterator[Entry]:
    """All files below a folder that are not hidden, in no order. May raise OSError."""
    seen = set()  # folders by their real path: a link may lead back up
    for folder, folders, names in os.walk(base, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen or not recursive else sorted(n for n in folders if not n.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            if not name.startswith("."):
                path = os.path.join(folder, name)
                yield entry(path, posixpath.join(*os.path.relpath(path, base).split(os.sep)))


def _raise(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that may not be read, and its images would be silently missing


def entry(path: str, key: str) -> Entry:
    """What the file system says about one file."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere: listed, so that reading it says so
        return Entry(path, key, 0, "")
    return Entry(path, key, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def read(path: str) -> bytes:
    """The bytes of a file. May raise OSError; NotReadableError for what is no file."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a pipe would wait for ever
        raise NotReadableError(f"{path}: a pipe or device, not a file; give a file")
    return Path(path).read_bytes()


def write(path: str, fill: Callable[[str], object]) -> None:
    """Make the file whole or not at all: `fill` writes it under another name in the same folder, made if missing."""
    folder = os.path.dirname(path) or "."
    with _writable(path):
        os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".writing-{uuid.uuid4().hex}")
    try:
        fill(temporary)
        with _writable(path):
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_bytes(path: str, blob: bytes) -> None:
    """`write` with what to write."""

    def fill(temporary: str) -> None:
        with _writable(path):
            Path(temporary).write_bytes(blob)

    write(path, fill)


@contextlib.contextmanager
def _writable(path: str) -> Iterator[None]:
    try:
        yield
    except (NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{path}: cannot be written: a file lies where its folder should be; {_ELSE}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: cannot be written: it is a folder; {_ELSE}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); mend that, or {_ELSE}") from error


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what the file system raises about `path` into a UserError that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotThereError(f"{path}: no such file; look at the path") from error
    except PermissionError as error:
        raise NotAllowedError(f"{path}: no permission; look at its owner and mode") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise NotThereError(f"{path}: not a file; look at the path") from error
    except FileExistsError as error:
        raise UserError(f"{path}: a file lies where a folder is needed; give another place") from error
    except OSError as error:
        kind = UserError if "://" in path or error.errno in _OF_THE_MACHINE else NotReadableError
        raise kind(f"{path}: {error.strerror or error}; look at the path and at the disk") from error
    except ValueError as error:  # Python's refusal of a name that the system could not be asked about
        if "\0" not in path and not isinstance(error, UnicodeEncodeError):
            raise
        raise NotReadableError(f"{path!r}: not a possible name of a file; mend the path") from error
