"""Tables that a person or a program damaged: one bad row is a problem, a swallowed rest is an error with its line."""

import re
from pathlib import Path

import numpy as np
import pytest

from data import sources, store
from data.collection import Collection, DataConfig, load_collection
from data.errors import UserError
from data.manifest import Source
from tests.images_zoo import encoded

ROWS = [f"{n}.png,{'ab'[n % 2]}" for n in range(8)]


def read(folder: Path, *lines: str, header: str = "path,label") -> Source:
    store.write(str(folder / "l.csv"), "\n".join([header, *lines, ""]).encode())
    return sources.read(str(folder / "l.csv"))


def load(folder: Path, *lines: str, header: str) -> Collection:
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
        store.write(str(folder / "d1" / f"{number}.png"), encoded(pixels))
    store.write(str(folder / "l.csv"), "\n".join([header, *lines, ""]).encode())
    return load_collection(DataConfig(data=str(folder / "l.csv"), image_size=8, cache_dir=str(folder / "cache")))


@pytest.mark.parametrize(
    "bad",
    ['8.png,"a', '"8.png,a', '8.png,"a\n9.png,"b"', '8.png,"a\n9.png,b\n10.png,b"', '8.png,"' + "x\n" * 99_999],
    ids=["label", "path", "closed wrongly", "closed later", "huge"],
)
def test_an_unclosed_quote_names_its_line(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UserError, match=r"l\.csv, line 5: a quote is opened"):
        read(tmp_path, *ROWS[:3], bad, *ROWS[3:])


@pytest.mark.parametrize("bad", ['"8.png"x,a', '8.png,"a\nb"', '"8\r\n.png",a'])
def test_one_malformed_row_is_a_problem(tmp_path: Path, bad: str) -> None:
    got = read(tmp_path, *ROWS[:3], bad, *ROWS[3:])
    assert [row.key for row in got.rows] == [f"{n}.png" for n in range(8)]
    assert [(p.problem, p.row) for p in got.problems] == [("bad_row", 5)]


def test_a_remark_may_have_several_lines(tmp_path: Path) -> None:
    got = read(tmp_path, '1.png,a,"small, dark\nand far away"', "2.png,b,", "3.png,b", header="path,label,remark")
    assert [row.line for row in got.rows] == [2, 4, 5]
    assert not got.problems


def test_a_file_cut_in_the_middle_of_a_letter(tmp_path: Path) -> None:
    store.write(str(tmp_path / "l.csv"), "path,label\n1.png,a\n".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"l\.csv: cut off or damaged.*UTF-8"):
        sources.read(str(tmp_path / "l.csv"))


@pytest.mark.parametrize(("header", "name"), [("path,label,Label", "label"), ("path, path,label", "path")])
def test_a_column_twice_is_refused(tmp_path: Path, header: str, name: str) -> None:
    with pytest.raises(UserError, match=f"two columns are called {name}"):
        read(tmp_path, "1.png,a,b", header=header)


def test_backslashes_are_looked_through(tmp_path: Path) -> None:
    store.write(str(tmp_path / "x.png"), b"")
    store.write(str(tmp_path / "root" / "d1" / "im" / "3.png"), b"")
    got = read(
        tmp_path / "root", "..\\x.png,a", "d1\\..\\..\\x.png,a", "\\x.png,a", "d1\\im\\3.png,a", "d1\\.\\im\\3.png,a"
    )
    assert [(p.problem, p.row) for p in got.problems] == [("outside", n) for n in (2, 3, 4)] + [("duplicate_row", 6)]
    assert [row.key for row in got.rows] == ["d1/im/3.png"]


@pytest.mark.parametrize("address", ["s3://", "s3:///x.png", "s3://bucket", "s3://no bucket/x.png"])
def test_an_address_without_a_bucket_is_one_bad_row(tmp_path: Path, address: str) -> None:
    got = read(tmp_path, *ROWS, f"{address},a")
    assert [(p.problem, p.row) for p in got.problems] == [("bad_path", 10)]
    assert len(got.rows) == 8


def test_a_given_split_that_tears_groups_apart_is_said_aloud(tmp_path: Path) -> None:
    splits = ["train"] * 4 + ["test"] * 3 + ["validation"]
    rows = [f"d1/{n}.png,{'ab'[n % 2]},g{min(n % 4, 2)},{split}" for n, split in enumerate(splits)]
    rows[5] = "d1/5.png,b,alone,test"
    got = load(tmp_path, *rows, header="path,label,group,split")
    said = "2 of 3 test images share a group with training images, because the given split tears groups apart"
    assert any(note.startswith(said) and "test accuracy measures memory" in note for note in got.notes)
    assert any(note.startswith("1 of 1 validation image shares a group") for note in got.notes)


def test_an_unknown_split_is_said_aloud(tmp_path: Path) -> None:
    splits = ["train"] * 4 + ["Test"] * 2 + ["dev"] * 2
    rows = [f"d1/{n}.png,{'ab'[n % 2]},{split}" for n, split in enumerate(splits)]
    got = load(tmp_path, *rows, header="path,label,split")
    assert any(re.search(r"The split 'dev' of 2 images is not known", note) for note in got.notes)
    assert not any("a group with training images" in note for note in got.notes)
