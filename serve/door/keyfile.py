"""The key file: JSON with the names of keys and their hashes, read strictly and written whole.

    {"version": 1, "keys": [{"name": "ana", "sha256": "<64 hex>", "aws_secret": "...", "rate": 50.0, "created": "..."}]}

A key is `er_` and 256 random bits as text. One SHA-256 of it is the right thing to keep: a slow, salted hash protects
words that people choose and others can guess, and nobody guesses 256 bits; a slow hash would only cost each request.
`aws_secret` (optional) lies there as it is, because a signature of AWS's kind can only be checked with the secret
itself. So only keys made with `--aws` have one, and a file that holds one must be nobody else's to read, its group not
excepted. Where a platform mounts files that the group reads (Kubernetes with an fsGroup), give such keys in the
environment instead (EAGLERAY_KEYS): a key there is its own secret.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import platformdirs
from filelock import FileLock, Timeout

from data import localfiles
from data.errors import UserError
from serve.scopestate import OPEN

FIRST: Final = "first"
"""The name of the key that a first run makes for itself."""
_VERSION: Final = 1
_LARGEST_BYTES: Final = 2**20
_MOST_KEYS: Final = 1000
"""Each request's key is compared with all of them."""
_FIELDS: Final = {"name", "sha256", "aws_secret", "rate", "created"}
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_LOCK_PATIENCE_S: Final = 10.0


@dataclass(frozen=True)
class Entry:
    """One key as it is kept. What must stay secret is not in its repr."""

    name: str
    sha256: bytes = field(repr=False)
    """32 bytes: the hash of the key's text."""
    aws_secret: str | None = field(default=None, repr=False)
    rate: float | None = None
    """Requests a second for each replica; None is the endpoint's own limit."""
    created: str = ""


@dataclass(frozen=True)
class NewKey:
    """A key at the only moment when its text exists."""

    name: str
    key: str = field(repr=False)
    aws_secret: str | None = field(repr=False)
    path: str


def default_file() -> Path:
    """The user's own key file."""
    return platformdirs.user_config_path("eagleray") / "keys.json"


def resolved(path: str) -> str:
    """The file that is meant: an empty path is the user's own. UserError for s3://, which is no place for keys."""
    if "://" in path:
        raise UserError(f"{path}: a key file lies on a disk of the machine that answers; give a local path")
    return os.path.abspath(os.path.expanduser(path)) if path else str(default_file())


def name_fault(name: str) -> str:
    """What is wrong with the name of a key, or an empty text."""
    if not _NAME.fullmatch(name):
        return "a name is 1-64 letters, digits, dots, dashes or underscores"
    return f"the name {OPEN!r} stands for callers without a key" if name == OPEN else ""


def hashed(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def read(path: str) -> tuple[Entry, ...]:
    """All keys of the file, in its order. UserError says what is wrong with it, and shows none of its contents."""
    with localfiles.explained(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a file; give the key file")
        with open(path, "rb") as file:
            blob = file.read(_LARGEST_BYTES + 1)
    if status.st_mode & 0o022:
        raise UserError(f"{path}: others may write to it and so let themselves in; chmod 600 it")
    if len(blob) > _LARGEST_BYTES:
        raise UserError(f"{path}: larger than {_LARGEST_BYTES // 2**20} MiB; is this the key file?")
    entries = _parsed(path, blob)
    if status.st_mode & 0o044 and any(entry.aws_secret for entry in entries):
        raise UserError(
            f"{path}: others (its group, or everyone on this machine) may read the AWS secrets in it; chmod 600 it, "
            "or give these keys in EAGLERAY_KEYS"
        )
    return entries


def list_keys(path: str) -> tuple[Entry, ...]:
    """What the file holds; nothing where there is no file."""
    path = resolved(path)
    return read(path) if os.path.lexists(path) else ()


def create_key(path: str, name: str, *, aws: bool = False, rate: float | None = None) -> NewKey:
    """Make a key and write it beside the others. The answer is the only place where its text can be read."""
    with _changing(path) as (path, entries):
        return _added(path, entries, name, aws=aws, rate=rate)


def first_key(path: str, others: Collection[str] = ()) -> NewKey | None:
    """Make a first key, unless the file holds one or there are `others` (names from the environment)."""
    with _changing(path) as (path, entries):
        return None if entries or others else _added(path, entries, FIRST)


def remove_key(path: str, name: str) -> None:
    """Take a key out of the file. Running replicas notice within about two seconds."""
    with _changing(path) as (path, entries):
        kept = tuple(entry for entry in entries if entry.name != name)
        if len(kept) == len(entries):
            there = ", ".join(entry.name for entry in entries) or "none"
            raise UserError(f"{path}: no key of that name; the keys there are: {there}")
        _write(path, kept)


def _added(path: str, entries: tuple[Entry, ...], name: str, *, aws: bool = False, rate: float | None = None) -> NewKey:
    if fault := name_fault(name):
        raise UserError(f"{name!r}: {fault}")
    if rate is not None and not 0 < rate <= 1e9:
        raise UserError(f"rate must be > 0 requests a second and finite, got {rate}")
    if any(entry.name == name for entry in entries):
        raise UserError(f"{path}: there is a key {name} already; take another name, or remove that one first")
    new = NewKey(name, f"er_{secrets.token_urlsafe(32)}", secrets.token_urlsafe(32) if aws else None, path)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    _write(path, (*entries, Entry(name, hashed(new.key), new.aws_secret, rate, created)))
    return new


@contextlib.contextmanager
def _changing(path: str) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    """The file's real path and what it holds, held against other commands that change it too."""
    path = os.path.realpath(resolved(path))  # a link stays a link: what it points to is replaced
    with localfiles.explained(path):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout=_LOCK_PATIENCE_S, mode=0o600)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"{path}: another command is changing it; try again when that has ended") from None
    try:
        yield path, list_keys(path)
    finally:
        lock.release()


def _write(path: str, entries: tuple[Entry, ...]) -> None:
    content = {"version": _VERSION, "keys": [_as_json(entry) for entry in entries]}
    blob = (json.dumps(content, indent=1) + "\n").encode()

    def fill(temporary: str) -> None:
        # The mode is there from the first byte: a secret that was readable for a moment was readable.
        with (
            localfiles.explained(path),
            open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f,
        ):
            f.write(blob)
            f.flush()
            os.fsync(f.fileno())

    localfiles.write(path, fill)


def _as_json(entry: Entry) -> dict[str, Any]:
    values = {"name": entry.name, "sha256": entry.sha256.hex(), "aws_secret": entry.aws_secret, "rate": entry.rate}
    return {name: value for name, value in {**values, "created": entry.created}.items() if value not in (None, "")}


def _parsed(path: str, blob: bytes) -> tuple[Entry, ...]:
    # No text of the file goes into a message: what is misplaced there may be a key.
    try:
        content = json.loads(blob)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; mend it, or remove it and make new keys (serve/keys.py add NAME)") from None
    if not isinstance(content, dict) or set(content) != {"version", "keys"} or not isinstance(content["keys"], list):
        raise UserError(f'{path}: not a key file; its form is {{"version": {_VERSION}, "keys": [...]}}')
    if content["version"] != _VERSION:
        raise UserError(f"{path}: its version is not {_VERSION}; use the eagleray that wrote it")
    if len(content["keys"]) > _MOST_KEYS:
        raise UserError(f"{path}: more than {_MOST_KEYS} keys; remove those that nobody uses")
    entries = []
    for number, raw in enumerate(content["keys"], 1):
        if fault := _fault(raw):
            raise UserError(f"{path}: key number {number}: {fault}")
        entries.append(Entry(**{**raw, "sha256": bytes.fromhex(raw["sha256"])}))
    if fault := doubled(entries):
        raise UserError(f"{path}: {fault}")
    return tuple(entries)


def _fault(raw: Any) -> str:
    """What is wrong with one key of the file, or an empty text."""
    if not isinstance(raw, dict) or not {"name", "sha256"} <= set(raw) <= _FIELDS:
        return f"its fields must be name, sha256 and, where wanted, {', '.join(sorted(_FIELDS - {'name', 'sha256'}))}"
    if not isinstance(raw["name"], str):
        return "name must be a text"
    if fault := name_fault(raw["name"]):
        return fault
    if not isinstance(raw["sha256"], str) or not _HASH.fullmatch(raw["sha256"]):
        return "sha256 must be 64 characters of 0-9 and a-f"
    secret, rate = raw.get("aws_secret"), raw.get("rate")
    if secret is not None and not (isinstance(secret, str) and usable(secret)):
        return "aws_secret must be 16-256 visible ASCII characters"
    if rate is not None and not (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate <= 1e9):
        return "rate must be a number > 0: requests a second"
    return "" if isinstance(raw.get("created", ""), str) else "created must be a text"


def usable(secret: str) -> bool:
    """Whether a text that was not made here can serve as a key or a secret."""
    return 16 <= len(secret) <= 256 and secret.isascii() and secret.isprintable() and " " not in secret


def doubled(entries: Collection[Entry]) -> str:
    """What two keys share that must be one key's own, or an empty text."""
    names = Counter(entry.name for entry in entries)
    if twice := sorted(name for name, count in names.items() if count > 1):
        return f"more than one key is named {', '.join(twice)}; each needs a name of its own"
    if len({entry.sha256 for entry in entries}) < len(entries):
        return "two names have the same key; each needs a key of its own"
    return ""
