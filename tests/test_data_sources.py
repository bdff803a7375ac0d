"""Class folders and split folders, as people write them; and the problems table, which misses nothing."""

from pathlib import Path

import pytest

from data import problems, store
from data.errors import UserError
from tests.data_labelled import codes, load, picture, put


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def test_a_folder_per_class(root: Path, cache: Path) -> None:
    put(root, *(f"eel/{n}.png" for n in range(5)), *(f"Sea star/site1/{n}.PNG" for n in range(5)))
    got = load(root, cache)
    assert got.classes == ("Sea star", "eel")
    assert list(got.table["key"]) == sorted(got.table["key"])
    assert set(got.table.columns) == {"path", "key", "label", "group", "frame", "split", "sha256", "row"}
    assert len(got.problems) == 0
    assert "nothing kept near neighbours together" in got.grouping
    assert got.table["split"].value_counts().to_dict() == {"train": 6, "test": 2, "validation": 2}


@pytest.mark.parametrize("name", ["valid", "val", "validation", "Validation"])
def test_split_folders_are_the_split(root: Path, cache: Path, name: str) -> None:
    put(root, *(f"train/{c}/{n}.png" for c in "ab" for n in range(4)), *(f"{name}/{c}/x{n}.png" for c in "ab" for n in "12"), *(f"test/{c}/y.png" for c in "ab"))  # fmt: skip  # noqa: E501
    got = load(root, cache)
    assert got.classes == ("a", "b")
    assert got.table["split"].value_counts().to_dict() == {"train": 8, "validation": 4, "test": 2}
    assert {key.split("/")[0].lower()[:3] for key in got.table[got.table["split"] == "validation"]["key"]} == {"val"}
    assert got.notes == ()


def test_a_missing_test_folder_is_carved_from_train(root: Path, cache: Path) -> None:
    put(
        root,
        *(f"train/{c}/{n}.png" for c in "ab" for n in range(20)),
        *(f"valid/{c}/x{n}.png" for c in "ab" for n in "12"),
    )
    got = load(root, cache)
    assert got.table["split"].value_counts().to_dict() == {"train": 34, "validation": 4, "test": 6}
    assert all(key.startswith("train/") for key in got.table[got.table["split"] == "test"]["key"])
    assert any("test had no rows and came from train" in note for note in got.notes)


def test_a_class_may_be_called_test(root: Path, cache: Path) -> None:
    put(root, *(f"{c}/{n}.png" for c in ("test", "other") for n in range(4)))
    assert load(root, cache).classes == ("other", "test")


def test_what_lies_about_in_a_folder_is_named(root: Path, cache: Path) -> None:
    put(root, *(f"train/{c}/{n}.png" for c in "ab" for n in range(4)), "train/loose.png", "notes/x.png", "top.png")
    for name in ("Thumbs.db", "train/a/readme.txt", ".DS_Store", "train/a/._1.png"):
        store.write(str(root / name), b"x")
    got = load(root, cache)
    assert len(got.table) == 8
    said = {
        (Path(path).name, problem) for path, problem in zip(got.problems["path"], got.problems["problem"], strict=True)
    }
    assert said == {
        ("Thumbs.db", "other_file"),
        ("readme.txt", "other_file"),
        ("loose.png", "no_label"),
        ("x.png", "no_label"),
        ("top.png", "no_label"),
    }


def test_useless_folders_say_what_to_give_instead(root: Path, cache: Path) -> None:
    root.mkdir()
    with pytest.raises(UserError, match="no images there"):
        load(root, cache)
    store.write(str(root / "x.doc"), b"")
    with pytest.raises(UserError, match=r"among 1 files \(mostly \.doc\)"):
        load(root, cache)
    put(root, "x.png")
    with pytest.raises(UserError, match="no class folders"):
        load(root, cache)
    store.write(str(root / "labels.csv"), b"path,label\nx.png,a\n")
    with pytest.raises(UserError, match=r"holds labels\.csv"):
        load(root, cache)
    put(root, "a/1.png", "a/2.png")
    with pytest.raises(UserError, match="only class is 'a'"):
        load(root, cache)
    with pytest.raises(UserError, match="no such file or folder"):
        load(root / "gone", cache)
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        load(root / "gone.csv", cache)
    with pytest.raises(UserError, match="save the table as CSV"):
        load(root / "x.doc", cache)
    with pytest.raises(UserError, match=r"--images .*gone: no such folder"):
        load(root / "labels.csv", cache, images=str(root / "gone"))
    with pytest.raises(UserError, match="only a CSV needs it"):
        load(root, cache, images=str(root))
    for name in ("b/1.jpg", "b/2.jpg"):
        store.write(str(root / name), b"text")
    put(root, start=0)
    store.write(str(root / "a" / "1.png"), b"")
    store.write(str(root / "a" / "2.png"), b"")
    with pytest.raises(UserError, match="no usable image"):
        load(root, cache)


def test_the_file_of_two_labels_is_left_out_wholly(root: Path, cache: Path) -> None:
    put(root, *(f"{c}/{n}.png" for c in "ab" for n in range(4)))
    store.write(str(root / "b" / "again.png"), picture(0))
    got = load(root, cache)
    assert codes(got) == ["two_labels", "two_labels"]
    assert len(got.table) == 7


def test_a_copy_is_never_in_train_and_test(root: Path, cache: Path) -> None:
    put(
        root,
        *(f"train/{c}/{n}.png" for c in "ab" for n in range(4)),
        *(f"test/{c}/{n}t.png" for c in "ab" for n in "12"),
    )
    store.write(str(root / "test" / "a" / "seen.png"), picture(0))
    got = load(root, cache)
    assert codes(got) == ["duplicate"]
    assert "train/a/0.png" not in set(got.table["key"])


def test_the_manifest_comes_back_as_it_was(root: Path, cache: Path, tmp_path: Path) -> None:
    put(root, *(f"{c}/{n}.png" for c in "ab" for n in range(10)))
    first = load(root, cache)
    first.write_manifest(str(tmp_path / "runs" / "manifest.csv"))
    again = load(tmp_path / "runs" / "manifest.csv", cache)
    assert again.fingerprints() == first.fingerprints()
    assert list(again.table["group"]) == list(first.table["group"])
    assert list(again.table["path"]) == list(first.table["path"])
    assert again.pack_path == first.pack_path


def test_every_problem_has_advice() -> None:
    assert all(len(advice) > 10 for advice in problems.ADVICE.values())
    with pytest.raises(AssertionError):
        problems.Problem("", "new_code", "")


def test_an_empty_problems_table_has_its_columns() -> None:
    empty = problems.table([])
    assert list(empty.columns) == list(problems.COLUMNS)
    assert len(empty) == 0
