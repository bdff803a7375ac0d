"""CSVs and target files, as people write them; and each row that cannot be used, named."""

import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from data import problems, sources, store
from data.errors import UserError
from tests.data_labelled import codes, load, picture, put


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


ROWS = [(f"img/{n}.png", "ab"[n % 2], f"g{n // 2}", ("train", "valid", "test")[n // 4]) for n in range(12)]


def table(
    delimiter: str = ",", header: str | None = "path,label,group,split", rows: list[tuple[str, ...]] | None = None
) -> str:
    lines = [delimiter.join(row) for row in (rows or ROWS)]
    return "\n".join([*([header.replace(",", delimiter)] if header else []), *lines]) + "\n"


@pytest.mark.parametrize(
    "blob",
    [
        table().encode(),
        table().encode("utf-8-sig"),
        table().encode("utf-16"),
        table().replace("\n", "\r\n").encode(),
        table(";").encode(),
        table("\t").encode(),
        table(header="Path, Label ,GROUP,Split").encode(),
        table().replace(",a,", ", a ,").encode(),
        table().replace("img/", "./img//").encode(),
        table().replace("img/", "img\\").encode(),
        table(header="filename,class,group,split").encode(),
        ("\n\n" + table() + "\n,,,\n").encode(),
        b'"path","label","group","split"\n' + "\n".join(",".join(f'"{v}"' for v in row) for row in ROWS).encode(),
    ],
    ids="plain bom utf16 crlf semicolon tab header spaces dots backslash names blank quoted".split(),  # noqa: SIM905
)
def test_a_csv_however_it_was_saved(root: Path, cache: Path, blob: bytes) -> None:
    put(root, *(row[0] for row in ROWS))
    store.write(str(root / "labels.csv"), blob)
    got = load(root / "labels.csv", cache)
    assert len(got.problems) == 0, got.problems.to_string()
    have = {tuple(row) for row in got.table[["key", "label", "group", "split"]].itertuples(index=False)}
    assert have == {(p, la, g, {"valid": "validation"}.get(s, s)) for p, la, g, s in ROWS}
    assert got.grouping == "Grouped by the column group: 6 groups."


def test_windows_letters_in_an_old_csv(root: Path, cache: Path) -> None:
    put(root, *(f"{n}.png" for n in range(6)))
    rows = "".join(f"{n}.png,{('Möwe', 'Star')[n % 2]}\n" for n in range(6))
    store.write(str(root / "l.csv"), f"path,label\n{rows}".encode("cp1252"))
    assert load(root / "l.csv", cache).classes == ("Möwe", "Star")


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_target_file(root: Path, cache: Path, delimiter: str, end: str) -> None:
    names = [f"563216{v}_EX1708_VID_20170926T2{v}2000Z_ROVHD.mp4_{f}.png" for v in range(3) for f in (90, 1378, 200, 9)]
    put(root / "frames", *names)
    rows = [
        f"{n}{delimiter}{name}{delimiter}{'interesting' if n % 2 else 'not_interesting'}"
        for n, name in enumerate(names)
    ]
    store.write(str(root / "target.csv"), (end.join(rows) + end).encode())
    got = load(root / "target.csv", cache, images=str(root / "frames"))
    assert len(got.table) == 12
    assert got.grouping == "Grouped by the video in the file names: 3 groups."
    assert sorted(got.table["frame"].unique()) == [9, 90, 200, 1378]
    assert got.table["split"].value_counts().to_dict() == {"train": 4, "validation": 4, "test": 4}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("path,label\n", "a header and no rows"),
        ("image_id,species\n1.png,eel\n", r"columns path and label.*found: image_id, species.*rename"),
        ("1.png,eel\n", r"found: 1\.png, eel"),
        ("path\n1.png\n", "found: path"),
    ],
)
def test_a_useless_csv_says_why(root: Path, cache: Path, text: str, says: str) -> None:
    store.write(str(root / "l.csv"), text.encode())
    with pytest.raises(UserError, match=rf"l\.csv: .*{says}"):
        load(root / "l.csv", cache)


def test_a_csv_with_everything_wrong_names_it_all(root: Path, cache: Path) -> None:
    put(root, *(f"{n}.png" for n in range(15)))  # no row names the last
    store.write(str(root / "copy.png"), picture(0))
    store.write(str(root / "twin1.png"), picture(99))
    store.write(str(root / "twin2.png"), picture(99))
    store.write(str(root / "broken.png"), picture(50)[:60])
    store.write(str(root / "zero.png"), b"")
    store.write(str(root / "Case.png"), picture(51))
    store.write(str(root / "case.png"), picture(52))
    lines = ["path,label,split"]  # line 1
    lines += [f"{n}.png,{'ab'[n % 2]},{'test' if n > 11 else 'train'}" for n in range(12)]  # 2 to 13
    lines += [
        "copy.png,a,train",  # 14: the bytes of 0.png
        "twin1.png,a,train",  # 15
        "twin2.png,b,train",  # 16
        "broken.png,a,train",
        "zero.png,a,train",
        "Case.png,a,train",  # 19
        "case.png,a,train",
        "gone.png,a,train",
        "12.png,,train",  # 22
        ",a,train",
        "3.png,b,train",  # 24: again
        "13.png,a,train",
        "13.png,b,train",  # 26
        "../outside.png,a,train",
        "a/../../outside.png,a,train",
        "sub/../12.png,A,sometimes",  # 29
        "short.png",
        "4.png,a,train,more",
    ]
    store.write(str(root / "l.csv"), "\n".join(lines).encode())
    got = load(root / "l.csv", cache)
    found = {
        (row, problem)
        for row, problem in zip(got.problems["row"], got.problems["problem"], strict=True)
        if row is not pd.NA
    }
    assert found == {
        (14, "duplicate"),
        (15, "two_labels"),
        (16, "two_labels"),
        (17, "unreadable"),
        (18, "unreadable"),
        (19, "same_name"),
        (20, "same_name"),
        (21, "missing"),
        (22, "no_label"),
        (23, "no_path"),
        (24, "duplicate_row"),
        (25, "two_labels"),
        (26, "two_labels"),
        (27, "outside"),
        (28, "outside"),
        (29, "unknown_split"),
        (30, "no_label"),
        (31, "short_row"),
        (31, "duplicate_row"),
    }
    whole = got.problems[got.problems["row"].isna()]
    assert sorted(whole["problem"]) == ["few_images", "no_row", "similar_labels"]
    assert list(got.problems.columns) == list(problems.COLUMNS)
    assert got.problems["what_to_do"].str.len().min() > 10
    # Nothing is silently dropped: each row of the file is in the table or among the problems.
    left_out = set(got.problems["row"].dropna()) - {19, 20, 29, 31}
    assert len(got.table) + len(left_out) + 1 == len(lines) - 1  # line 31 names 4.png again
    got.write_problems(str(root / "problems.csv"))
    assert len(pd.read_csv(root / "problems.csv")) == len(got.problems)


def test_small_and_lonely_classes_are_named(root: Path, cache: Path) -> None:
    put(root, *(f"{n}.png" for n in range(14)))
    rows = [(f"{n}.png", "common", f"g{n}") for n in range(10)]
    rows += [
        ("10.png", "rare", "g1"),
        ("11.png", "rare", "g2"),
        ("12.png", "one_place", "g99"),
        ("13.png", "one_place", "g99"),
    ]
    store.write(str(root / "l.csv"), table(header="path,label,group", rows=rows).encode())  # type: ignore[arg-type]
    got = load(root / "l.csv", cache)
    assert sorted(codes(got)) == ["few_images", "few_images", "single_group"]
    assert any("one_place lie in one group" in note for note in got.notes)
    assert set(got.table[got.table["label"] == "one_place"]["split"]) == {"train"}


def test_a_group_torn_by_the_given_split_is_named_and_kept(root: Path, cache: Path) -> None:
    put(root, *(f"{n}.png" for n in range(12)))
    rows = [(f"{n}.png", "ab"[n % 2], f"g{n // 4}", "test" if n > 9 else "train") for n in range(12)]
    store.write(str(root / "l.csv"), table(rows=rows).encode())  # type: ignore[arg-type]
    got = load(root / "l.csv", cache)
    assert codes(got) == ["straddling"]
    assert "'g2' lies in train and test" in got.problems["detail"][0]
    assert (got.table["split"] == "test").sum() == 2
    assert set(got.table[got.table["group"] == "g2"]["split"]) == {"train", "test"}


def test_names_in_either_unicode_form(root: Path, cache: Path) -> None:
    stored = [unicodedata.normalize("NFD", f"Größe/é{n}.png") for n in range(6)]
    put(root, *stored)
    said = [(unicodedata.normalize("NFC", name), "ab"[n % 2]) for n, name in enumerate(stored)]
    store.write(str(root / "l.csv"), table(header="path,label", rows=said).encode())  # type: ignore[arg-type]
    got = load(root / "l.csv", cache)
    assert len(got.problems) == 0
    assert list(got.table["key"]) == sorted(name for name, _ in said)


def test_absolute_paths_in_a_csv(root: Path, cache: Path, tmp_path: Path) -> None:
    put(root, *(f"{n}.png" for n in range(6)))
    put(tmp_path / "elsewhere", *(f"{n}.png" for n in range(6)), start=20)
    rows = [(str(root / f"{n}.png"), "ab"[n % 2]) for n in range(6)]
    rows += [(str(tmp_path / "elsewhere" / f"{n}.png"), "ab"[n % 2]) for n in range(7)]
    store.write(str(root / "l.csv"), table(header="path,label", rows=rows).encode())  # type: ignore[arg-type]
    got = load(root / "l.csv", cache)
    assert codes(got) == ["missing"]
    assert len(got.table) == 12
    assert "0.png" in set(got.table["key"])  # below the root: the same key as a relative path gives


def test_a_csv_in_a_bucket_does_not_read_this_disk(bucket: str, root: Path, cache: Path) -> None:
    put(root, "secret.png", "secret2.png")
    store.write(
        f"{bucket}/sly/l.csv", f"path,label\n{root}/secret.png,a\n{root}/secret2.png,b\n../../x.png,b\n".encode()
    )
    with pytest.raises(UserError, match="no usable image"):
        load(f"{bucket}/sly/l.csv", cache)
    assert {p.problem for p in sources.read(f"{bucket}/sly/l.csv").problems} == {"outside"}
