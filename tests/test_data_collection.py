"""The whole way from files to arrays: the same from disk and bucket, small enough to send, kept apart by group."""

import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from data import store
from data.collection import Collection, DataConfig, load_collection
from data.errors import UserError
from data.images import Failure, decode, resize


def load(data: Path | str, cache: Path | str, **options: object) -> Collection:
    return load_collection(replace(DataConfig(data=str(data), image_size=16, cache_dir=str(cache)), **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def loaded(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return load(photos / "labels.csv", tmp_path_factory.mktemp("cache"))


def test_rows_labels_and_pixels_belong_together(loaded: Collection) -> None:
    assert loaded.classes == ("crab", "sponge")
    seen: list[str] = []
    for split in ("train", "validation", "test"):
        subset = loaded.subset(split)
        assert len(subset.rows) == len(subset.labels) == len(subset.paths) == len(subset.groups) > 0
        assert subset.rows.dtype == subset.labels.dtype == np.int64
        seen += subset.paths
        for row, label, path in zip(subset.rows, subset.labels, subset.paths, strict=True):
            pixels = decode(store.read(path))
            assert not isinstance(pixels, Failure)
            assert np.array_equal(loaded.images()[row], resize(pixels, loaded.resize))
            (named,) = loaded.table[loaded.table["path"] == path]["label"]
            assert loaded.classes[label] == named
    assert sorted(seen) == sorted(loaded.table["path"])


def test_no_group_lies_in_two_splits(loaded: Collection) -> None:
    assert loaded.table.groupby("group")["split"].nunique().max() == 1
    assert loaded.table["split"].value_counts().to_dict() == {"train": 64, "validation": 16, "test": 16}


def test_it_travels_small_and_opens_its_pack_in_another_process(loaded: Collection, tmp_path: Path) -> None:
    loaded.images()
    blob = pickle.dumps(loaded)
    assert len(blob) < 50_000
    (tmp_path / "c").write_bytes(blob)
    code = (
        "import pickle, sys; c = pickle.load(open(sys.argv[1], 'rb')); print(int(c.images().sum()), c.fingerprints())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{int(loaded.images().sum())} {loaded.fingerprints()}"


def test_bucket_and_disk_are_one_collection(loaded: Collection, photos: Path, bucket: str, tmp_path: Path) -> None:
    place = f"{bucket}/{tmp_path.name}/photos"
    store.upload_folder(str(photos), place)
    remote = load(f"{place}/labels.csv", tmp_path)
    assert remote.fingerprints() == loaded.fingerprints()
    same = ["key", "label", "group", "frame", "split", "sha256", "row"]
    assert remote.table[same].equals(loaded.table[same])
    assert np.array_equal(remote.images(), loaded.images())
    assert list(remote.table["path"]) == [f"{place}/{key}" for key in remote.table["key"]]


def test_a_folder_in_a_bucket(bucket: str, photos: Path, tmp_path: Path) -> None:
    place = f"{bucket}/{tmp_path.name}/classes/"
    for n, path in enumerate(sorted(photos.rglob("*.png"))):
        target = (("crab", "sponge")[n % 2], f"{n}.png")
        store.write(store.join(place, *target), path.read_bytes())
        store.write(str(tmp_path.joinpath("classes", *target)), path.read_bytes())
    local, remote = load(tmp_path / "classes", tmp_path / "1"), load(place, tmp_path / "2", group_by="image")
    assert local.fingerprints() == remote.fingerprints()


def test_the_order_of_rows_changes_nothing(loaded: Collection, photos: Path, tmp_path: Path) -> None:
    header, *rows = (photos / "labels.csv").read_text().splitlines()
    random.Random(5).shuffle(rows)
    (tmp_path / "l.csv").write_text("\n".join([header, *rows]))
    mixed = load(tmp_path / "l.csv", tmp_path, images=str(photos))
    assert mixed.table.equals(loaded.table)
    assert mixed.fingerprints() == loaded.fingerprints()


def test_fingerprints_follow_what_they_name(loaded: Collection, photos: Path, tmp_path: Path) -> None:
    other = load(photos / "labels.csv", loaded.config.cache_dir, split_seed=1)
    assert other.fingerprints()["data"] == loaded.fingerprints()["data"]
    assert other.fingerprints()["split"] != loaded.fingerprints()["split"]
    text = (photos / "labels.csv").read_text()
    (tmp_path / "l.csv").write_text(text.replace("site-00/0.png,crab", "site-00/0.png,sponge"))
    relabelled = load(tmp_path / "l.csv", loaded.config.cache_dir, images=str(photos))
    assert relabelled.fingerprints()["data"] != loaded.fingerprints()["data"]
    assert relabelled.pack_path == loaded.pack_path


def test_paths_are_absolute_whatever_was_given(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    got = load(f"{photos.name}/labels.csv", "x", images=f"./{photos.name}/", cache_dir=str(tmp_path))
    assert got.config.data == str(photos / "labels.csv")
    assert got.config.images == str(photos)
    assert all(path.startswith(str(photos)) for path in got.table["path"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image_size": 4}, "image_size must be from 8"),
        ({"image_size": -1}, "image_size must be"),
        ({"resize": "squash"}, "resize must be one of stretch, crop, pad, got squash"),
        ({"split_seed": -1}, "split_seed must be >= 0, got -1"),
        ({"images": "x"}, "needs data"),
    ],
)
def test_a_wrong_setting_is_refused_where_it_is_made(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DataConfig(**options)  # type: ignore[arg-type]


def test_asking_for_no_split(loaded: Collection) -> None:
    with pytest.raises(ValueError, match="train, validation, test"):
        loaded.subset("valid")


def test_every_setting_is_read_by_something() -> None:
    code = "".join(file.read_text() for file in Path(__file__).parents[1].joinpath("data").glob("*.py"))
    for setting in fields(DataConfig):
        assert f"config.{setting.name}" in code


def test_real_birds_by_family(shared_data: Path, tmp_path: Path) -> None:
    got = load(shared_data / "birds-families" / "labels.csv", tmp_path)
    assert (len(got.table), len(got.classes), len(got.problems)) == (475, 19, 0)
    assert got.table.groupby("group")["split"].nunique().max() == 1
    assert got.table.groupby("label")["split"].nunique().min() == 3
    by_image = load(shared_data / "birds-families" / "labels.csv", tmp_path, group_by="image")
    assert by_image.table["split"].value_counts().to_dict() == {"train": 333, "validation": 71, "test": 71}
    assert by_image.fingerprints()["data"] == got.fingerprints()["data"]


def test_real_bird_classes_with_spaces(shared_data: Path, tmp_path: Path) -> None:
    got = load(shared_data / "birds-ten", tmp_path)
    assert (len(got.table), len(got.classes), len(got.problems)) == (50, 10, 0)
    assert "ABBOTTS BABBLER" in got.classes


def test_real_deep_sea_folders(shared_data: Path, tmp_path: Path) -> None:
    got = load(shared_data / "deepdive", tmp_path)
    assert (len(got.table), len(got.classes), len(got.problems)) == (3334, 33, 0)
    assert got.table["split"].value_counts().to_dict() == {"train": 2269, "validation": 667, "test": 398}
    assert any("came from train" in note for note in got.notes)


def test_real_birds_from_a_bucket(shared_data: Path, bucket: str, tmp_path: Path) -> None:
    place = f"{bucket}/{tmp_path.name}"
    store.upload_folder(str(shared_data / "birds-ten"), place)
    disk, remote = load(shared_data / "birds-ten", tmp_path), load(place, tmp_path)
    assert remote.fingerprints() == disk.fingerprints()
    assert remote.pack_path == disk.pack_path


def test_where_its_pack_is_not_it_is_packed_again(photos: Path, tmp_path: Path) -> None:
    """Another node of a cluster has the images' address and not the head's cache."""
    copied = tmp_path / "photos"
    shutil.copytree(photos, copied)
    head = load(copied / "labels.csv", tmp_path / "cache")
    assert head.here() is head
    pixels = head.images()[head.table["row"].to_numpy()].copy()
    shutil.rmtree(tmp_path / "cache")
    node = pickle.loads(pickle.dumps(head)).here()
    assert node.here() is node
    assert node.fingerprints() == head.fingerprints()
    assert node.pack_path == head.pack_path
    assert list(node.table["key"]) == list(head.table["key"])
    assert np.array_equal(node.images()[node.table["row"].to_numpy()], pixels)


@pytest.mark.parametrize("changed", ["a picture", "a label"])
def test_images_that_changed_are_not_packed_again_under_the_same_name(
    photos: Path, tmp_path: Path, changed: str
) -> None:
    copied = tmp_path / "photos"
    shutil.copytree(photos, copied)
    head = load(copied / "labels.csv", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    if changed == "a picture":
        first, second = sorted(copied.rglob("*.png"))[:2]
        first.write_bytes(second.read_bytes()[:-1] + b"\0")
    else:
        table = (copied / "labels.csv").read_text()
        (copied / "labels.csv").write_text(table.replace(",crab,", ",sponge,", 1))
    with pytest.raises(UserError, match=r"labels\.csv: the images or labels changed .* begin a new run"):
        head.here()
