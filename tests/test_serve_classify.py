"""Label this folder: the command from end to end, on disk and from a bucket."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data import store
from data.errors import UserError
from data.images import Failure
from models.predictor import Prediction, Predictor
from serve import labelling
from serve.labelling import LabelConfig, label_images, spreadsheet_safe
from tests.serving import CLASSES, picture, write_tiny_bundle

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(["b.png", "deep/c.PNG", 'a, "1".png', "-d.png"]):
        (folder / name).write_bytes(picture(seed))
    (folder / "cut.png").write_bytes(picture(9)[:300])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "labels.csv").write_text("no,image")
    (folder / "deep" / "Thumbs.db").write_bytes(b"windows")
    return folder


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_every_image_gets_a_row_sorted_by_path(tiny_bundle: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "predictions.csv"
    summary = label_images(LabelConfig(tiny_bundle, str(images), str(out), probabilities=True, batch_size=2))
    rows = rows_of(out.read_text())
    assert list(rows[0]) == ["path", "label", "probability", "confident", "error", *(f"p_{name}" for name in CLASSES)]
    names = ["-d.png", 'a, "1".png', "b.png", "cut.png", "deep/c.PNG", "empty.jpg"]
    assert [row["path"] for row in rows] == [str(images / name) for name in names]
    answers = Predictor.load(tiny_bundle).predict_bytes([(images / name).read_bytes() for name in names])
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, Failure):
            assert row["error"] == f"{answer.code}: {answer.message}"
            assert {row[key] for key in row if key not in ("path", "error")} == {""}
        else:
            assert (row["label"], row["error"]) == (answer.label, "")
            assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-5)
            assert row["confident"] == str(answer.confident).lower()
            assert sum(float(row[f"p_{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
    assert sum(summary.labels.values()) == 4
    assert summary.failures == Counter({"truncated": 1, "empty": 1})
    assert summary.skipped == 2
    assert "6 images" in str(summary)
    assert "2 failed" in str(summary)
    assert "2 files that are not images" in str(summary)
    assert [path.name for path in out.parent.iterdir()] == ["predictions.csv"]  # nothing half done is left


@pytest.mark.parametrize("suffix", [".pgm", ".pnm", ".apng"])
def test_all_that_trains_is_labelled(tiny_bundle: str, images: Path, tmp_path: Path, suffix: str) -> None:
    (images / f"zzz{suffix}").write_bytes(picture(5))
    summary = label_images(LabelConfig(tiny_bundle, str(images), str(tmp_path / "out.csv")))
    assert summary.skipped == 2
    assert rows_of((tmp_path / "out.csv").read_text())[-1]["path"].endswith(f"zzz{suffix}")


def test_an_output_is_not_overwritten_by_accident(tiny_bundle: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    out.write_text("dear work")
    with pytest.raises(UserError, match="--overwrite"):
        label_images(LabelConfig(tiny_bundle, str(images), str(out)))
    assert out.read_text() == "dear work"
    label_images(LabelConfig(tiny_bundle, str(images), str(out), overwrite=True))
    assert len(rows_of(out.read_text())) == 6


class KilledError(Exception):
    """Stands for the kill."""


@pytest.mark.parametrize("damage", ["", "half a row", "another folder's row"])
def test_a_stopped_run_leaves_no_output_and_goes_on(
    tiny_bundle: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    config = LabelConfig(tiny_bundle, str(images), str(tmp_path / "predictions.csv"), batch_size=1)
    whole = LabelConfig(tiny_bundle, str(images), str(tmp_path / "whole.csv"))
    label_images(whole)
    asked = 0
    predict = Predictor.predict_bytes

    def dies_at_the_fifth(self: Predictor, blobs: Sequence[bytes | Failure]) -> list[Prediction | Failure]:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise KilledError
        return predict(self, blobs)

    monkeypatch.setattr(Predictor, "predict_bytes", dies_at_the_fifth)
    with pytest.raises(KilledError):
        label_images(config)
    assert not os.path.exists(config.out)
    (partial,) = tmp_path.glob("predictions.csv.*.partial")
    if damage:
        text = partial.read_text()
        partial.write_text(text[:-4] if damage == "half a row" else text.replace("b.png", "x.png"))
    summary = label_images(config)
    assert summary.resumed == {"": 3, "half a row": 3, "another folder's row": 2}[damage]
    assert asked == 5 + 6 - summary.resumed
    assert Path(config.out).read_text() == Path(whole.out).read_text()
    assert not partial.exists()
    assert sum(summary.labels.values()) + sum(summary.failures.values()) == 6


def test_another_model_does_not_go_on_with_foreign_rows(tiny_bundle: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    other = str(tmp_path / "other")
    left = tmp_path / f"predictions.csv.{write_tiny_bundle(other, seed=1)}.partial"
    left.write_text("path,label,probability,confident,error\r\n")
    assert label_images(LabelConfig(tiny_bundle, str(images), str(out))).resumed == 0


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx"])
def test_formulas_are_defused(cell: str) -> None:
    assert spreadsheet_safe(cell) == f"'{cell}"
    assert labelling._plain(spreadsheet_safe(cell)) == cell


def test_plain_cells_stay_as_they_are() -> None:
    for cell in ("", "crab", "a=b", "0.5", "'quoted"):
        assert spreadsheet_safe(cell) == cell
        assert labelling._plain(cell) == cell


def test_file_names_that_are_no_text_survive(tiny_bundle: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    name = os.fsencode(folder) + b"/\xff\n1.png"
    with open(name, "wb") as file:
        file.write(picture(1))
    out = tmp_path / "predictions.csv"
    label_images(LabelConfig(tiny_bundle, str(folder), str(out)))
    assert name in out.read_bytes()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [({"batch_size": 0}, "batch_size must be >= 1, got 0"), ({"threads": -1}, "threads"), ({"out": ""}, "out must")],
)
def test_settings_check_themselves(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LabelConfig(**{"bundle": "b", "images": "i", **values})


def test_from_bucket_to_bucket(tiny_bundle: str, images: Path, tmp_path: Path, bucket: str) -> None:
    local = tmp_path / "predictions.csv"
    label_images(LabelConfig(tiny_bundle, str(images), str(local)))
    store.upload_folder(str(images), f"{bucket}/dive")
    store.upload_folder(tiny_bundle, f"{bucket}/model")
    out = f"{bucket}/results/predictions.csv"
    config = LabelConfig(f"{bucket}/model", f"{bucket}/dive", out, cache_dir=str(tmp_path / "cache"))
    label_images(config)
    remote = rows_of(store.read(out).decode())
    assert [row["path"].removeprefix(f"{bucket}/dive/") for row in remote][:2] == ["-d.png", 'a, "1".png']
    for row, expected in zip(remote, rows_of(local.read_text()), strict=True):
        assert {**row, "path": ""} == {**expected, "path": ""}
    with pytest.raises(UserError, match="--overwrite"):
        label_images(config)


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "serve" / "classify.py"), *arguments]


def test_the_command(tiny_bundle: str, images: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("--bundle", tiny_bundle, "--images", "images", "--out", "out.csv"),
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("6 images: ")
    assert str(tmp_path / "out.csv") in done.stdout
    assert len(rows_of((tmp_path / "out.csv").read_text())) == 6


@pytest.mark.parametrize(
    ("bundle_name", "images_name", "complaint"),
    [("nowhere", "images", "no bundle there"), ("", "nowhere", "no such folder"), ("", "images/deep/none", "no image")],
)
def test_what_cannot_be_done_is_one_line_and_code_2(
    tiny_bundle: str, images: Path, tmp_path: Path, bundle_name: str, images_name: str, complaint: str
) -> None:
    (images / "deep" / "none").mkdir()
    done = subprocess.run(
        command("--bundle", bundle_name or tiny_bundle, "--images", images_name),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "predictions.csv").exists()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(60):
        (folder / f"{index:03}.png").write_bytes(picture(index, 900))
    return folder


def test_a_killed_command_goes_on(tiny_bundle: str, many: Path, tmp_path: Path) -> None:
    line = command("--bundle", tiny_bundle, "--images", str(many), "--out", "out.csv", "--batch-size", "1")
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not any(p.stat().st_size > 500 for p in tmp_path.glob("*.partial")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out.csv").exists()
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "of them from the run before" in done.stdout
    assert [row["path"] for row in rows_of((tmp_path / "out.csv").read_text())] == sorted(map(str, many.iterdir()))
