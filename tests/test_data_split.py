"""Groups and splits: what belongs together stays together, and new rows move almost nothing."""

import random
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from data.errors import UserError
from data.groups import form, parse_video_name
from data.manifest import Row
from data.split import assign
from data.store import Entry

Rows = list[tuple[str, str]]  # label, group


def split(rows: Rows, seed: int = 0, given: list[str] | None = None) -> list[str]:
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]
    return assign(labels, groups, groups, given or [""] * len(rows), seed)[0]


def by_group(rows: Rows, splits: list[str]) -> dict[str, str]:
    """group -> split; fails where a group lies in two."""
    found: dict[str, str] = {}
    for (_, group), part in zip(rows, splits, strict=True):
        assert found.setdefault(group, part) == part
    return found


def world(seed: int, groups: int = 120, labels: int = 6) -> Rows:
    """Groups of 1 to 30 images with uneven labels; a third of the groups holds several labels."""
    dice = random.Random(seed)
    names = [f"label{n}" for n in range(labels)]
    rows: Rows = []
    for number in range(groups):
        mixed = dice.random() < 0.3
        own = dice.choices(names, [2.0**-n for n in range(labels)])[0]
        rows += [(dice.choice(names) if mixed else own, f"s{seed}g{number}") for _ in range(dice.randint(1, 30))]
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_no_group_straddles_and_shares_are_near(seed: int) -> None:
    rows = world(seed)
    splits = split(rows, seed)
    by_group(rows, splits)
    share = {part: count / len(rows) for part, count in Counter(splits).items()}
    assert 0.08 < share["test"] < 0.25
    assert 0.08 < share["validation"] < 0.25
    assert share["train"] > 0.55


@pytest.mark.parametrize("seed", range(8))
def test_ten_percent_more_groups_leave_nine_tenths_where_they_were(seed: int) -> None:
    rows = world(seed)
    before = by_group(rows, split(rows, seed))
    more = rows + world(seed + 1000, groups=12)
    after = by_group(more, split(more, seed))
    stayed = sum(after[group] == part for group, part in before.items())
    assert stayed >= 0.9 * len(before)


@pytest.mark.parametrize("seed", range(8))
def test_more_images_in_a_group_move_almost_nothing(seed: int) -> None:
    rows = world(seed)
    before = by_group(rows, split(rows, seed))
    label, group = rows[0]
    more = [*rows, *[(label, group)] * 3]
    after = by_group(more, split(more, seed))
    assert sum(after[name] != part for name, part in before.items()) <= 3


@pytest.mark.parametrize("seed", range(8))
def test_ten_percent_more_images_by_image(seed: int) -> None:
    rows = [("ab"[n % 3 == 0], f"image{n}") for n in range(600)]
    more = rows + [("ab"[n % 3 == 0], f"new{n}") for n in range(60)]
    before, after = by_group(rows, split(rows, seed)), by_group(more, split(more, seed))
    assert sum(after[name] == part for name, part in before.items()) >= 0.93 * len(rows)


def test_shuffled_rows_split_alike() -> None:
    rows = world(1)
    expected = by_group(rows, split(rows))
    for seed in range(5):
        mixed = random.Random(seed).sample(rows, len(rows))
        assert by_group(mixed, split(mixed)) == expected


def test_another_seed_is_another_split() -> None:
    rows = world(2)
    splits = [split(rows, seed) for seed in range(4)]
    assert all(a != b for a, b in pairwise(splits))
    assert split(rows, 3) == splits[3]


@pytest.mark.parametrize("groups", range(1, 12))
def test_every_label_with_three_groups_is_everywhere(groups: int) -> None:
    rows = [(label, f"{label}{n}") for label in ("a", "b") for n in range(groups) for _ in range(5)]
    where = defaultdict(set)
    for (label, _), part in zip(rows, split(rows), strict=True):
        where[label].add(part)
    expected = {1: {"train"}, 2: {"train", "test"}}.get(groups, {"train", "validation", "test"})
    assert where["a"] == where["b"] == expected


def test_rare_labels_get_their_share_first() -> None:
    """Groups that hold a rare label are spread by it, not by the common label that they hold too."""
    rows = [("common", f"c{n}") for n in range(100) for _ in range(4)]
    rows += [(label, f"r{n}") for n in range(9) for label in ("rare", "common", "common")]
    parts = Counter(part for (label, _), part in zip(rows, split(rows), strict=True) if label == "rare")
    assert parts == {"train": 7, "test": 1, "validation": 1}


def test_one_long_video_does_not_become_the_test_set() -> None:
    for seed in range(20):
        rows = [("a", "long")] * 500 + [("a", f"short{n}") for n in range(10) for _ in range(20)]
        rows += [("b", group) for _, group in rows[::7]]
        assert by_group(rows, split(rows, seed))["long"] == "train"


def test_twelve_dives() -> None:
    rows = [("ab"[n % 2], f"dive{d}") for d in range(12) for n in range(60)]
    assert Counter(by_group(rows, split(rows)).values()) == {"train": 8, "validation": 2, "test": 2}


def test_what_the_data_states_is_kept() -> None:
    rows = [("ab"[n % 2], f"g{n}") for n in range(100)]
    given = ["test" if n < 10 else "train" for n in range(100)]
    splits, notes = assign([r[0] for r in rows], [r[1] for r in rows], [r[1] for r in rows], given, 0)
    assert splits[:10] == ["test"] * 10
    assert Counter(splits[10:]) == {"train": 76, "validation": 14}
    assert notes == ["The data states its splits; validation had no rows and came from train."]
    whole = ["test" if n < 10 else "validation" if n < 20 else "train" for n in range(100)]
    assert split(rows, given=whole) == whole


def test_rows_without_a_stated_split_follow_their_group() -> None:
    rows = [("a", "g1"), ("b", "g1"), ("a", "g2"), ("b", "g3"), ("a", "g4"), ("b", "g4")]
    assert split(rows, given=["test", "", "validation", "train", "", ""])[:4] == ["test", "test", "validation", "train"]
    assert split(rows, given=["test", "", "validation", "train", "", ""])[4:] == ["train", "train"]


def test_a_torn_group_is_not_carved_again() -> None:
    rows = [("ab"[n % 2], f"g{n // 4}") for n in range(80)]
    given = ["test" if n % 40 == 0 else "train" for n in range(80)]
    for seed in range(10):
        splits = split(rows, seed, given)
        torn = {"g0", "g10"}
        assert {part for (_, group), part in zip(rows, splits, strict=True) if group in torn} == {"train", "test"}


def test_what_lacks_is_said_aloud() -> None:
    labels = ["a"] * 6 + ["b"] * 3 + ["c"] * 2
    groups = ["1", "2", "3", "4", "5", "6", "7", "7", "7", "8", "9"]
    _, notes = assign(labels, groups, groups, [""] * 11, 0)
    assert any("All images of b lie in one group" in note for note in notes)
    assert any("No image of c is in validation" in note for note in notes)


def rows_of(*keys: str, **columns: str) -> list[Row]:
    return [Row(Entry(key, key, 1, "v"), key, "a", columns=columns, line=n) for n, key in enumerate(keys, 2)]


NOAA = "56321614_EX1708_VID_20170926T212000Z_ROVHD.mp4_1378.png"


@pytest.mark.parametrize("name", [NOAA, f"a/b/{NOAA}", NOAA.replace(".png", "_flip.JPG"), NOAA.replace("mp4", "MOV")])
def test_noaa_names(name: str) -> None:
    found = parse_video_name(name)
    assert found is not None
    assert (found.camera, found.cruise, found.start, found.frame) == ("56321614", "EX1708", "20170926T212000Z", 1378)
    assert found.video == "56321614_EX1708_20170926T212000Z"


@pytest.mark.parametrize(
    "name", ["1378.png", "x" + NOAA, "56321614_EX1708_VID_2017_ROVHD.mp4_1378.png", NOAA[:-9] + ".png"]
)
def test_other_names_are_no_videos(name: str) -> None:
    assert parse_video_name(name) is None


def test_without_a_word_the_best_grouping_is_taken() -> None:
    named = rows_of(NOAA, NOAA.replace("_1378", "_2"), group="dive1")
    assert form(named, "", ("path", "label", "group")).groups == ("dive1", "dive1")
    by_video = form(named, "", ())
    assert by_video.groups == ("56321614_EX1708_20170926T212000Z",) * 2
    assert by_video.frames == (1378, 2)
    alone = form(rows_of("x.png", "y.png"), "", ())
    assert alone.groups == ("x.png", "y.png")
    assert alone.alone == (True, True)
    assert "nothing kept near neighbours together" in alone.how


def test_groups_as_asked_for() -> None:
    rows = rows_of(NOAA, "reef7/x.png", site="s")
    assert form(rows, "site", ("path", "site")).groups == ("s", "s")
    assert form(rows, "image", ("path", "group")).groups == (NOAA, "reef7/x.png")
    some = form(rows, "regex:^reef([0-9]+)/", ())
    assert some.groups == (NOAA, "7")
    assert [(p.problem, p.row) for p in some.problems] == [("no_group", 2)]
    assert "1 images without one stand by themselves" in some.how
    assert form(rows, "regex:^(?P<group>reef)([0-9]+)/", ()).groups[1] == "reef"
    assert form(rows, "regex:^reef[0-9]+", ()).groups[1] == "reef7"
    assert form(rows_of(NOAA, video="tape 3"), "video", ("path", "video")).groups == ("tape 3",)  # a column comes first


@pytest.mark.parametrize(
    ("group_by", "says"),
    [
        ("dive", r"no such column.*columns: path, site.*regex:PATTERN"),
        ("regex:(", "not a regular expression"),
        ("regex:(a)(b)", "keep one pair"),
        ("regex:nothing", "no image got a group"),
        ("video", "no image got a group"),
    ],
)
def test_useless_groupings_say_what_to_give(group_by: str, says: str) -> None:
    with pytest.raises(UserError, match=f"--group-by {group_by.split(':')[0]}.*{says}"):
        form(rows_of("a/x.png", site="s"), group_by, ("path", "site"))
