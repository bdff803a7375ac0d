"""The files that the rows of a table mean: from what a row says to a key below the root, and from keys to files."""

import contextlib
import hashlib
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from data import store
from data.manifest import looks_like_image, nfc
from data.problems import Problem
from data.store import Entry
from data.words import counted


def key_of(name: str, images: str) -> str | None:
    """The path below the root, an absolute address as it is, or None where a relative path leads out of the root."""
    root = images.rstrip("/") + "/"
    if store.is_remote(name) or (posixpath.isabs(name) and not store.is_remote(images)):
        return name.removeprefix(root)
    key = posixpath.normpath(name)
    for form in (key, _slashes(name)):
        if form.startswith(("../", "/")) or form in ("..", "."):
            return None
    return key


def relative(key: str) -> str:
    """A key without what makes it absolute."""
    return key.removeprefix("s3://").lstrip("/")


def address(images: str, key: str) -> str:
    """Where the file of a key lies, whether it is there or not."""
    return key if store.is_remote(key) or posixpath.isabs(key) else store.join(images, *key.split("/"))


def find(images: str, keys: list[str], *, ours: bool) -> tuple[dict[str, Entry], list[Problem]]:
    """The files that the keys mean, and a problem for each folder that holds images without rows.

    Only folders that rows name are listed: a CSV in a home folder must not make us walk the home. A name is found in
    either Unicode form, and with Windows' backslashes. In a table of `ours` a copy of an image that has a row was left
    out on purpose, or is kept with its correction: that is no problem.
    """
    inside = {key: nfc(_slashes(key)) for key in keys if not store.is_remote(key) and not posixpath.isabs(key)}
    listed = _listed(images, {posixpath.dirname(key) for key in (*inside, *inside.values())})
    exact = {entry.key: entry for entry in listed}
    alike = {nfc(entry.key): entry for entry in listed}
    found = {key: exact.get(key) or alike.get(plain) for key, plain in inside.items()}
    named = {entry.path: entry for entry in found.values() if entry}
    left = [entry for entry in listed if entry.path not in named and looks_like_image(entry.key)]
    copies = _copies(left, named.values()) if ours else frozenset()
    unnamed: dict[str, list[str]] = defaultdict(list)
    for entry in left:
        if entry.path not in copies:
            unnamed[store.parent(entry.path)].append(posixpath.basename(entry.key))
    for key in keys:
        if key not in inside:
            found[key] = store.find(key, relative(key))
    return {key: entry for key, entry in found.items() if entry}, [
        Problem(folder, "no_row", f"{counted(len(names), 'image file')} without a row, e.g. {min(names)}; not used")
        for folder, names in sorted(unnamed.items())
    ]


def _copies(some: Iterable[Entry], others: Iterable[Entry]) -> frozenset[str]:
    """Paths of those whose bytes one of the others has. Only files of a size that both sides know are read."""
    some, others = list(some), list(others)
    sizes = {entry.size for entry in some} & {entry.size for entry in others}
    hashes = [
        {path: hashlib.sha256(blob).digest() for path, blob in store.read_many(fitting) if isinstance(blob, bytes)}
        for fitting in ([entry.path for entry in side if entry.size in sizes] for side in (some, others))
    ]
    known = set(hashes[1].values())
    return frozenset(path for path, found in hashes[0].items() if found in known)


def _listed(images: str, folders: set[str]) -> list[Entry]:
    """The files right in these folders below the root (posix, "" is the root itself), with keys below the root."""
    folders = {form for folder in folders for form in (folder, nfc(folder), unicodedata.normalize("NFD", folder))}
    found: dict[str, Entry] = {}
    if store.is_remote(images):  # one listing of what they have in common: a request per folder would be slow
        common = posixpath.commonpath(folders) if folders else ""
        listed = [_below(entry, common) for entry in store.list_files(store.join(images, common))]
        return [entry for entry in listed if posixpath.dirname(entry.key) in folders]
    for folder in sorted(folders):
        with contextlib.suppress(store.NotThereError):  # its rows are reported as missing
            listed = store.list_files(store.join(images, *folder.split("/")), recursive=False)
            found.update((entry.path, _below(entry, folder)) for entry in listed)
    return list(found.values())


def _below(entry: Entry, folder: str) -> Entry:
    return Entry(entry.path, posixpath.join(folder, entry.key), entry.size, entry.version)


def _slashes(name: str) -> str:
    """A relative path with Windows' backslashes as slashes."""
    return posixpath.normpath(name.replace("\\", "/"))
