"""The pack when things go wrong: killed builds resumed, nothing left by a full disk, damage noticed and made good."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import images, pack, packfolder, store
from data.errors import UserError
from data.images import Failure
from data.journal import Journal
from data.resizing import Resize
from tests.data_packs import HOW, SLOW, build, packs, watch_reads, write_root
from tests.images_zoo import encoded


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "root")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read, as they are read."""
    return watch_reads(monkeypatch)


def killed_build(root: Path, cache: Path) -> Path:
    """The folder that a build leaves when it is killed after eight images."""
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(root), str(cache), "8"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as out:
        while out.readline() != b"8\n":
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    (half,) = [name for name in packs(cache) if name.startswith(".building")]
    return cache / "packs" / half


def test_an_unreadable_file_is_tried_again(root: Path, tmp_path: Path) -> None:
    (root / "99.png").symlink_to(tmp_path / "later.png")
    missing = build(root, tmp_path).outcomes[-1]
    assert isinstance(missing, Failure)
    assert missing.code == "unreadable"
    store.write(str(tmp_path / "later.png"), encoded(np.full((20, 30, 3), 9, np.uint8)))
    assert isinstance(build(root, tmp_path).outcomes[-1], str)


def test_a_killed_build_goes_on_where_it_was(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    with open(killed_build(root, cache) / "done.jsonl", "ab") as journal:
        journal.write(b'{"slot": 8, "sha2')  # and the power failed in the middle of a line
    decoded = []
    real = images.decode_resized

    def counted(blob: bytes, how: Resize) -> images.Pixels | Failure:
        decoded.append(1)
        return real(blob, how)

    monkeypatch.setattr(pack, "decode_resized", counted)
    resumed = build(root, cache)
    assert len(decoded) == 20 - 8 + 1  # the rest, and the one that is no image
    assert packs(cache) == [os.path.basename(resumed.folder)]
    clean = build(root, tmp_path / "clean")
    assert resumed.rows == clean.rows
    assert np.array_equal(packfolder.open_pack(resumed.folder), packfolder.open_pack(clean.folder))


def test_slots_whose_pixels_were_lost_are_made_again(root: Path, tmp_path: Path) -> None:
    """The journal may reach the disk before the pixels when the machine goes down: the checksum finds it."""
    cache = tmp_path / "cache"
    with open(killed_build(root, cache) / "pixels.u8", "r+b") as pixels:
        pixels.seek(3 * 16 * 16 * 3)
        pixels.write(bytes(16 * 16 * 3))
    resumed, clean = build(root, cache), build(root, tmp_path / "clean")
    assert np.array_equal(packfolder.open_pack(resumed.folder), packfolder.open_pack(clean.folder))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write, calls = os.pwrite, []

    def full(handle: int, blob: bytes, offset: int) -> int:
        calls.append(1)
        if len(calls) > 5:
            raise OSError(number, os.strerror(number))
        return write(handle, blob[: len(blob) // 2 + 1], offset)  # a full disk takes a part first

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"disk is full.*--image-size.*--cache-dir"):
        build(root, tmp_path)
    assert packs(tmp_path) == []
    monkeypatch.undo()
    assert len(build(root, tmp_path).rows) == 20


def test_a_limit_on_file_size_is_a_full_disk(root: Path, tmp_path: Path) -> None:
    """Not simulated: the kernel itself refuses the write."""
    code = """
import resource, sys
from data import pack, store
from data.errors import UserError
from data.images import Resize
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    pack.build(store.list_files(sys.argv[1]), Resize(16), cache_dir=sys.argv[2], scope=sys.argv[1])
except UserError as error:
    print(error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(root), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "disk is full" in done.stdout
    assert packs(tmp_path) == []


def test_too_little_space_is_said_before_anything_is_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(UserError, match="disk is full"):
        build(root, tmp_path)
    assert reads == []
    assert packs(tmp_path) == []


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no pixels": lambda folder: (folder / "pixels.u8").unlink(),
    "few pixels": lambda folder: os.truncate(folder / "pixels.u8", 5000),
    "many pixels": lambda folder: os.truncate(folder / "pixels.u8", 10**6),
    "no meta": lambda folder: (folder / "pack.json").unlink(),
    "half a meta": lambda folder: os.truncate(folder / "pack.json", 40),
    "another meta": lambda folder: (folder / "pack.json").write_text("{}"),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_pack_is_made_again_and_said_when_it_is_missed(root: Path, tmp_path: Path, damage: str) -> None:
    got = build(root, tmp_path)
    pixels = np.array(packfolder.open_pack(got.folder))
    DAMAGE[damage](Path(got.folder))
    packfolder.open_pack.cache_clear()
    with pytest.raises(UserError, match="run the command again"):
        packfolder.open_pack(got.folder)
    assert build(root, tmp_path) == got
    assert packs(tmp_path) == [os.path.basename(got.folder)]
    assert np.array_equal(packfolder.open_pack(got.folder), pixels)


def test_records_that_nobody_understands_are_passed_over(root: Path, tmp_path: Path, reads: list[str]) -> None:
    got = build(root, tmp_path)
    (index,) = (tmp_path / "index").iterdir()
    entry = store.list_files(str(root))[3]
    for record in ({}, {"path": entry.path, "version": entry.version}, {"path": ["x"], "code": 3}):
        with open(index, "a") as lines:
            lines.write(json.dumps(record) + "\n")
    reads.clear()
    assert build(root, tmp_path) == got
    assert reads == []
    half = tmp_path / "packs" / f".building-{packfolder.digest(['x'])}"
    builder = pack._Build(str(half), [], HOW, str(tmp_path), Journal(str(index)))
    half.mkdir()
    with Journal(str(half / "done.jsonl")) as journal:
        journal.append({"slot": 0})
    with open(half / "done.jsonl") as handle:
        builder._resume(handle.fileno(), Journal(str(half / "done.jsonl")))
    assert builder.slots == {}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of builds, as they begin."""
    seen: list[str] = []
    run = pack._Build.run

    def watched(self: pack._Build, known: dict[store.Entry, pack.Outcome], progress: bool) -> pack.Packed:
        seen.append(self.folder)
        return run(self, known, progress)

    monkeypatch.setattr(pack._Build, "run", watched)
    return seen


def test_what_stays_missing_does_not_build_again(
    root: Path, tmp_path: Path, reads: list[str], builds: list[str]
) -> None:
    (root / "99.png").symlink_to(tmp_path / "later.png")
    first = build(root, tmp_path)
    reads.clear()
    assert build(root, tmp_path) == first
    assert len(builds) == 1
    assert reads == ["99.png"]  # asked for again, and nothing else
    store.write(str(tmp_path / "later.png"), encoded(np.full((20, 30, 3), 9, np.uint8)))
    assert len(build(root, tmp_path).rows) == 21
    assert len(builds) == 2


def test_what_stays_forbidden_does_not_build_again(
    root: Path, tmp_path: Path, reads: list[str], builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, forbidden = store.try_read, Failure("unreadable", "no permission")
    with monkeypatch.context() as patch:
        patch.setattr(store, "try_read", lambda e, **o: forbidden if e.key == "07.png" else read(e, **o))
        first = build(root, tmp_path)
        assert first.outcomes[7] == forbidden
        reads.clear()
        assert build(root, tmp_path) == first
        assert len(builds) == 1
    assert isinstance(build(root, tmp_path).outcomes[7], str)
    assert len(builds) == 2


@pytest.mark.parametrize("inner", ["", "packs"])
def test_a_cache_that_is_a_file_says_so(root: Path, tmp_path: Path, inner: str) -> None:
    store.write(str(tmp_path / "cache" / inner if inner else tmp_path / "cache"), b"")
    with pytest.raises(UserError, match=r"cache: no cache can be kept there.*--cache-dir"):
        build(root, tmp_path / "cache")


def test_a_damaged_copy_of_an_object_is_not_held_against_it(root: Path, tmp_path: Path, bucket_place: str) -> None:
    store.upload_folder(str(root), bucket_place)
    entries = store.list_files(bucket_place)
    store.read(entries[4], cache_dir=str(tmp_path))
    (copy,) = (tmp_path / "s3").glob("*/*")
    copy.write_bytes(bytes(entries[4].size))  # as long as it should be
    assert isinstance(build(bucket_place, tmp_path).outcomes[4], str)


def test_a_journal_survives_torn_lines(tmp_path: Path) -> None:
    path = str(tmp_path / "sub" / "j.jsonl")
    assert list(Journal(path).records()) == []
    with Journal(path) as journal:
        journal.append({"n": 1})
    with open(path, "ab") as file:
        file.write(b'{"n": 2, "x')
    with Journal(path) as journal:
        journal.append({"n": 3})
    assert [record["n"] for record in Journal(path).records()] == [1, 3]
    assert json.loads(Path(path).read_bytes().splitlines()[-1]) == {"n": 3}
