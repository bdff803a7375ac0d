"""Who may call: the keys of a file, which may change while the endpoint runs, and of the environment."""

import hashlib
import hmac
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from data.errors import UserError
from serve.door import keyfile
from serve.door.keyfile import Entry
from serve.door.keyfile import NewKey as NewKey
from serve.door.keyfile import create_key as create_key
from serve.door.keyfile import default_file as default_file
from serve.door.keyfile import first_key as first_key
from serve.door.keyfile import list_keys as list_keys
from serve.door.keyfile import remove_key as remove_key
from serve.door.keyfile import resolved as resolved

logger = logging.getLogger("eagleray.serve")

VARIABLE: Final = "EAGLERAY_KEYS"
"""Keys as they are: NAME=KEY,NAME=KEY. Each is both a bearer key and the secret of AWS's signatures."""
LONGEST_KEY: Final = 256
"""Characters. Nothing longer is hashed."""
LOOK_EVERY_S: Final = 2.0


@dataclass(frozen=True)
class _Known:
    """All that is known at one moment; replaced whole, so that a reader never sees half of a change."""

    path: str | None
    seen: object
    """What the file looked like when it was last read, or the error that kept it from being looked at."""
    entries: tuple[Entry, ...]
    by_name: Mapping[str, Entry]


class Keys:
    """The keys of the environment and of the file that it follows. Not to be copied to other processes.

    A change of the file is seen within about two seconds. A file that turns bad leaves the keys in force that were
    read before, with one warning; a file that is deleted takes its keys with it.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, clock: Callable[[], float] = time.monotonic) -> None:
        """The environment's keys alone. UserError where the variable cannot be understood."""
        self._fixed = _from_environment(environ)
        self._clock = clock
        self._next_look = 0.0
        self._changing = threading.Lock()
        self._known = self._combined(None, None, ())

    @classmethod
    def open(cls, path: str, environ: Mapping[str, str] = os.environ) -> "Keys":
        """The keys of both. UserError for a file that is there but wrong; one that is not there holds no keys."""
        keys = cls(environ)
        keys.follow(path)
        return keys

    def follow(self, path: str) -> None:
        """Take this file's keys from now on, in the place of another's; an empty path is the user's own file.

        UserError leaves everything as it was.
        """
        path = keyfile.resolved(path)
        with self._changing:
            if path == self._known.path:
                return
            seen = _look_of(path)
            self._known = self._combined(path, seen, self._read(path, seen))
        if not self._known.entries:
            logger.warning("nobody can call: %s holds no key and %s is empty", path, VARIABLE)

    def named(self, key: str | bytes) -> str | None:
        """The name of this key, None if it is nobody's.

        What is compared are hashes, each in constant time, and always all of them: the time tells nothing.
        """
        known = self._current()
        presented = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key
        if len(presented) > LONGEST_KEY:
            return None
        digest = hashlib.sha256(presented).digest()
        found = None
        for entry in known.entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry.name
        return found

    def secret_of(self, name: str) -> str | None:
        """The secret that a caller of this name signs with, None if there is none."""
        entry = self._current().by_name.get(name)
        return entry.aws_secret if entry else None

    def rate_of(self, name: str) -> float | None:
        """Requests a second that this key was given of its own, None if it goes by the endpoint's limit."""
        entry = self._current().by_name.get(name)
        return entry.rate if entry else None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._current().by_name)

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._known.by_name)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not sent to other processes: open them where they are needed")

    def _current(self) -> _Known:
        now = self._clock()
        if now >= self._next_look and self._known.path is not None:
            self._next_look = now + LOOK_EVERY_S
            with self._changing:
                self._look_again()
        return self._known

    def _look_again(self) -> None:
        path = self._known.path
        assert path is not None
        seen = _look_of(path)
        if seen == self._known.seen:
            return
        try:
            entries = self._read(path, seen)
        except UserError as error:
            logger.warning("the keys read before stay in force: %s", error)
            self._known = _Known(path, seen, self._known.entries, self._known.by_name)
            return
        self._known = self._combined(path, seen, entries)
        logger.warning("%s changed; the keys in force: %s", path, ", ".join(self._known.by_name) or "none")

    def _read(self, path: str, seen: object) -> tuple[Entry, ...]:
        """The file's keys, once they are known not to clash with the environment's."""
        entries = keyfile.read(path) if seen is not None else ()
        if fault := keyfile.doubled((*self._fixed, *entries)):
            raise UserError(f"{path} and {VARIABLE} together: {fault}")
        return entries

    def _combined(self, path: str | None, seen: object, entries: tuple[Entry, ...]) -> _Known:
        both = (*self._fixed, *entries)
        return _Known(path, seen, both, {entry.name: entry for entry in both})


def _look_of(path: str) -> object:
    """What changes when the file changes; None where there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return str(error)
    # ctime moves with the mode too, which decides whether the file may be used.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def _from_environment(environ: Mapping[str, str]) -> tuple[Entry, ...]:
    entries = []
    parts = [part.strip() for part in environ.get(VARIABLE, "").split(",")]
    for number, part in enumerate((part for part in parts if part), 1):
        name, equals, key = part.partition("=")
        # Told by its number: what is misplaced here may be a key.
        if not equals or keyfile.name_fault(name):
            raise UserError(
                f"{VARIABLE}: key number {number} is not NAME=KEY with a name of 1-64 letters, digits, dots, dashes or "
                "underscores"
            )
        if not keyfile.usable(key):
            raise UserError(
                f"{VARIABLE}: the key of {name} must be 16-256 visible ASCII characters, best random ones: "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        entries.append(Entry(name, keyfile.hashed(key), aws_secret=key))
    if fault := keyfile.doubled(entries):
        raise UserError(f"{VARIABLE}: {fault}")
    return tuple(entries)
