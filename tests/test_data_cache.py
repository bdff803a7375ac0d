"""Local copies of objects, the folder they lie in and what is evicted from it, and the few reads under way at once."""

import os
import threading
from pathlib import Path

import boto3
import pytest

from data import cachefolder, store
from data.errors import UserError
from data.parallel import ordered_map
from data.store import Entry


def test_the_local_copy_is_read_until_the_object_changes(bucket_place: str, tmp_path: Path) -> None:
    cache, path = str(tmp_path), f"{bucket_place}/x"
    store.write(path, b"one")
    (entry,) = store.list_files(bucket_place)
    assert store.read(entry, cache_dir=cache) == b"one"
    assert cachefolder.usage(cache)["s3"] > 0
    store.write(path, b"two")
    assert store.read(entry, cache_dir=cache) == b"one"  # this very version was asked for
    assert store.read(path, cache_dir=cache) == b"two"
    boto3.client("s3").delete_object(Bucket="frames", Key=path.removeprefix("s3://frames/"))
    assert store.read(entry, cache_dir=cache) == b"one"
    with pytest.raises(UserError, match="no such"):
        store.read(path, cache_dir=cache)


def test_few_items_are_under_way_at_once() -> None:
    started = 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal started
        with lock:
            started += 1
        return number

    results = ordered_map(work, range(1000), workers=3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert started <= 5 + 2 * 3
    results.close()
    assert started <= 5 + 2 * 3


def test_the_first_exception_ends_it() -> None:
    def work(number: int) -> int:
        return 10 // (3 - number)

    with pytest.raises(ZeroDivisionError):
        list(ordered_map(work, range(100), workers=2))


def test_a_full_cache_loses_what_was_used_least_recently(tmp_path: Path) -> None:
    files = [tmp_path / "s3" / "ab" / str(n) for n in range(4)]
    for age, file in enumerate(files):
        store.write(str(file), bytes(10_000))
        os.utime(file, (1e9 + age, 1e9 + age))
    fresh, old = tmp_path / "packs" / "fresh", tmp_path / "packs" / "old"
    for folder in (fresh, old):
        store.write(str(folder / "pixels.u8"), bytes(10_000))
    os.utime(old, (1e9 + 1, 1e9 + 1))
    used = cachefolder.usage(str(tmp_path))
    assert used["packs"] >= 20_000
    assert used["s3"] >= 40_000
    one = used["s3"] // 4
    gone = cachefolder.evict(str(tmp_path), limit=sum(used.values()) - 3 * one + 1, keep=[str(files[0])])
    assert set(gone) == {str(files[1]), str(old), str(files[2])}
    cachefolder.evict(str(tmp_path), limit=0)
    assert fresh.exists()  # used within a day: it may be open
    assert not any(file.exists() for file in files)


def test_downloaded_weights_are_bounded_and_runs_under_way_are_not_touched(tmp_path: Path) -> None:
    for kind in ("weights", "runs"):
        store.write(str(tmp_path / kind / "x"), bytes(10_000))
        os.utime(tmp_path / kind / "x", (1e9, 1e9))
    assert cachefolder.usage(str(tmp_path))["weights"] >= 10_000
    assert cachefolder.evict(str(tmp_path), limit=0) == [str(tmp_path / "weights" / "x")]
    assert (tmp_path / "runs" / "x").exists()


def test_an_entry_is_read_like_its_path(tmp_path: Path) -> None:
    store.write(str(tmp_path / "f"), b"x")
    assert store.read(Entry(str(tmp_path / "f"), "f", 1, "v"), cache_dir=str(tmp_path / "cache")) == b"x"


def test_a_copy_that_was_cut_off_is_fetched_again(bucket_place: str, tmp_path: Path) -> None:
    store.write(f"{bucket_place}/x", b"whole")
    (entry,) = store.list_files(bucket_place)
    for asked in (entry, entry.path):
        assert store.read(asked, cache_dir=str(tmp_path)) == b"whole"
        (copy,) = (tmp_path / "s3").glob("*/*")
        os.truncate(copy, 2)
        assert store.read(asked, cache_dir=str(tmp_path)) == b"whole"
        assert copy.read_bytes() == b"whole"


def test_a_cache_that_takes_no_copies_is_no_error(bucket_place: str, tmp_path: Path) -> None:
    store.write(f"{bucket_place}/x", b"whole")
    store.write(str(tmp_path / "cache"), b"a file")
    assert store.read(f"{bucket_place}/x", cache_dir=str(tmp_path / "cache")) == b"whole"


def test_the_cache_may_lie_in_the_home_folder(
    bucket_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store.write(f"{bucket_place}/x", b"whole")
    store.read(f"{bucket_place}/x", cache_dir="~/hx")
    assert os.listdir(tmp_path) == ["home"]
    assert list((tmp_path / "home" / "hx" / "s3").glob("*/*"))
