"""Corrections and the manifest that they correct become the next search's labels."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from data.collection import Collection, DataConfig, load_collection
from data.errors import UserError
from serve.corrections.gathering import GatherConfig, gather
from serve.corrections.keeping import Correction, Corrections
from tests.serving import picture


@pytest.fixture
def searched(tmp_path: Path) -> Collection:
    """What a search read: 24 images in eight dives. Its manifest lies in run/manifest.csv."""
    lines = ["path,label,group"]
    (tmp_path / "frames").mkdir()
    for number in range(24):
        (tmp_path / "frames" / f"{number}.png").write_bytes(picture(number, 12))
        lines.append(f"{number}.png,{('crab', 'eel')[number % 2]},dive {number // 3}")
    (tmp_path / "frames" / "labels.csv").write_text("\n".join(lines))
    collection = load(tmp_path / "frames" / "labels.csv", tmp_path)
    collection.write_manifest(str(tmp_path / "run" / "manifest.csv"))
    return collection


def load(data: Path, tmp_path: Path) -> Collection:
    return load_collection(DataConfig(data=str(data), image_size=8, cache_dir=str(tmp_path / "cache")))


def say(folder: Path, *corrections: Correction) -> None:
    kept = Corrections(str(folder), max_rows=99, max_bytes=2**20)
    for correction in corrections:
        asyncio.run(kept.add(correction))


def config(tmp_path: Path) -> GatherConfig:
    manifest, said, out = (str(tmp_path / name) for name in ("run/manifest.csv", "said", "labels.csv"))
    return GatherConfig(manifest=manifest, corrections=said, out=out)


def test_changed_labels_keep_their_split_and_new_images_are_trained_on(searched: Collection, tmp_path: Path) -> None:
    tested = searched.table[searched.table["split"] == "test"].iloc[0]
    number = int(str(tested["key"]).removesuffix(".png"))
    say(
        tmp_path / "said",
        Correction(picture(number, 12), "kea", group="elsewhere"),  # an image that the model was tested with
        Correction(picture(100, 12), "crab"),
        Correction(picture(101, 12), "eel", group=str(tested["group"])),
    )
    gathered = gather(config(tmp_path))
    assert (gathered.added, gathered.changed, gathered.new_labels) == (2, {"test": 1}, ("kea",))
    assert "uv run tune/search.py --data" in str(gathered)

    table = load(tmp_path / "labels.csv", tmp_path).table.set_index("key")
    before = searched.table.set_index("key")
    assert table.loc[before.index, "split"].equals(before["split"])
    assert table.loc[before.index, "group"].equals(before["group"])
    assert table.loc[tested["key"], "label"] == "kea"
    added = table.loc[~table.index.isin(before.index)]
    assert dict(zip(added["label"], added["split"], strict=True)) == {"crab": "train", "eel": "test"}  # with its group


def test_the_kept_copy_of_a_corrected_image_is_no_problem(searched: Collection, tmp_path: Path) -> None:
    """Its row is the one that it had; a file that nobody named is still one."""
    said = tmp_path / "said"
    say(said, Correction(picture(0, 12), "kea"), Correction(picture(100, 12), "crab"))
    gather(config(tmp_path))
    problems = load(tmp_path / "labels.csv", tmp_path).problems
    assert problems[problems["problem"] == "no_row"].empty
    (said / "images" / "stranger.png").write_bytes(picture(101, 12))
    problems = load(tmp_path / "labels.csv", tmp_path).problems
    (row,) = problems[problems["problem"] == "no_row"].to_dict("records")
    assert row["detail"] == "1 image file without a row, e.g. stranger.png; not used"


def test_what_it_refuses(searched: Collection, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="said: no corrections there"):
        gather(config(tmp_path))
    say(tmp_path / "said", Correction(picture(100, 12), "crab"))
    other = GatherConfig(manifest=str(tmp_path / "frames" / "labels.csv"), corrections="x", out=str(tmp_path / "o.csv"))
    with pytest.raises(UserError, match="not the manifest"):
        gather(other)
    (tmp_path / "labels.csv").write_text("")
    with pytest.raises(UserError, match="exists already"):
        gather(config(tmp_path))
    with pytest.raises(ValueError, match="manifest must not be empty"):
        GatherConfig(manifest="", corrections="x")


def test_the_command(searched: Collection, tmp_path: Path) -> None:
    say(tmp_path / "said", Correction(picture(100, 12), "crab"))
    flags = {"--manifest": "run/manifest.csv", "--corrections": "said", "--out": "labels.csv"}
    script = Path(__file__).resolve().parents[1] / "serve" / "gather.py"
    command = [sys.executable, str(script), *(part for pair in flags.items() for part in pair)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("images added: 1; labels changed: 0 -> ")
    assert len(load(tmp_path / "labels.csv", tmp_path).table) == 25
