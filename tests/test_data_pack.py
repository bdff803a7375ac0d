"""The pack: each image read once, the same content the same pack, and only changed files read again."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data import packfolder, store
from data.images import Failure, decode, resize
from data.resizing import Resize
from tests.data_packs import HOW, SLOW, build, packs, watch_reads, write_root
from tests.images_zoo import encoded, zoo


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "root")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read, as they are read."""
    return watch_reads(monkeypatch)


def test_every_row_is_its_image(root: Path, tmp_path: Path) -> None:
    got = build(root, tmp_path)
    pixels = packfolder.open_pack(got.folder)
    assert pixels.shape == (20, 16, 16, 3)
    assert not pixels.flags.writeable
    for entry, outcome in zip(store.list_files(str(root)), got.outcomes, strict=True):
        if isinstance(outcome, Failure):
            assert (entry.key, outcome.code) == ("21.png", "not_an_image")
        else:
            expected = decode(store.read(entry.path))
            assert not isinstance(expected, Failure)
            assert np.array_equal(pixels[got.rows[outcome]], resize(expected, HOW))
    assert got.outcomes[0] == got.outcomes[20]


def test_a_second_run_reads_nothing(root: Path, tmp_path: Path, reads: list[str]) -> None:
    first = build(root, tmp_path)
    assert len(reads) == 22
    reads.clear()
    assert build(root, tmp_path) == first
    assert reads == []


def test_a_changed_file_changes_the_pack_and_is_read_alone(root: Path, tmp_path: Path, reads: list[str]) -> None:
    first = build(root, tmp_path)
    reads.clear()
    store.write(str(root / "05.png"), encoded(np.full((20, 30, 3), 77, np.uint8)))
    store.write(str(root / "new.png"), encoded(np.full((20, 30, 3), 78, np.uint8)))
    second = build(root, tmp_path)
    assert second.folder != first.folder
    assert sorted(reads) == ["05.png", "new.png"]  # the others' pixels come from the older pack
    again = build(root, tmp_path / "fresh")
    assert os.path.basename(again.folder) == os.path.basename(second.folder)
    assert all(
        np.array_equal(packfolder.open_pack(second.folder)[row], packfolder.open_pack(again.folder)[again.rows[sha]])
        for sha, row in second.rows.items()
    )


def test_size_and_mode_are_part_of_the_key(root: Path, tmp_path: Path) -> None:
    folders = {build(root, tmp_path, how).folder for how in (HOW, Resize(17), Resize(16, "pad"), HOW)}
    assert len(folders) == 3


def test_the_key_is_the_content_not_the_place(root: Path, tmp_path: Path, bucket_place: str) -> None:
    store.upload_folder(str(root), bucket_place)
    disk, bucket = build(root, tmp_path / "one"), build(bucket_place, tmp_path / "two")
    assert os.path.basename(disk.folder) == os.path.basename(bucket.folder)
    assert disk.outcomes == bucket.outcomes
    assert np.array_equal(packfolder.open_pack(disk.folder), packfolder.open_pack(bucket.folder))
    shared = build(bucket_place, tmp_path / "one")
    assert shared.folder == disk.folder
    assert packs(tmp_path / "one") == [os.path.basename(disk.folder)]


def test_all_nasty_images_at_once_and_their_neighbours_unharmed(root: Path, tmp_path: Path) -> None:
    for beast in zoo():
        store.write(str(root / "zoo" / beast.name), beast.blob)
    got = build(root, tmp_path)
    outcomes = dict(zip((e.key for e in store.list_files(str(root))), got.outcomes, strict=True))
    for beast in zoo():
        outcome = outcomes[f"zoo/{beast.name}"]
        assert (outcome.code if isinstance(outcome, Failure) else "ok") == beast.expected, beast.name
    assert all(isinstance(outcomes[f"{n:02}.png"], str) for n in range(21))


def test_nothing_good_is_no_pack(tmp_path: Path) -> None:
    store.write(str(tmp_path / "root" / "x.png"), b"")
    got = build(tmp_path / "root", tmp_path)
    assert got.folder == ""
    assert packs(tmp_path) == []
    assert build(tmp_path / "root", tmp_path) == got


def test_builders_at_once_make_one_pack(root: Path, tmp_path: Path) -> None:
    code = SLOW.replace("time.sleep(600)", "pass")
    argv = [sys.executable, "-c", code, str(root), str(tmp_path), "0"]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: subprocess.run(argv, capture_output=True, text=True, check=False), range(3)))
    assert [run.returncode for run in done] == [0, 0, 0], done
    assert sorted(len(run.stdout.split()) for run in done) == [0, 0, 20]  # the others waited, and found it made
    assert len(packs(tmp_path)) == 1


def test_looking_for_older_pixels_is_no_use_of_their_pack(root: Path, tmp_path: Path) -> None:
    old = build(root, tmp_path).folder
    os.utime(old, (1e9, 1e9))
    store.write(str(root / "05.png"), encoded(np.full((20, 30, 3), 77, np.uint8)))
    build(root, tmp_path)
    assert os.stat(old).st_mtime == 1e9
