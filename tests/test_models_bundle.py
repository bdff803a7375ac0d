"""A bundle stands alone, is never half there, and takes nobody else's place."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from data.resizing import Resize
from models.bundle import add_scores, bundle_id, read_bundle, read_info
from models.catalog import Classifier, ModelConfig, build
from models.fingerprint import code_fingerprint
from models.predictor import Predictor
from tests.models_bundles import toy_model, write
from tests.models_toys import CLASSES, toy_data


@pytest.fixture(scope="module")
def model() -> Classifier:
    return toy_model()


def same(one: Classifier, other: Classifier) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_a_bundle_round_trips(model: Classifier, tmp_path: Path) -> None:
    written = write(tmp_path / "b", model)
    info, again = read_bundle(str(tmp_path / "b"))
    assert info == written
    assert same(model, again)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert sorted(os.listdir(tmp_path / "b")) == ["bundle.json", "model.safetensors"]
    assert set(info.fingerprints) == {"data", "split", "code", "weights"}
    assert (info.engine, info.format_version, info.classes) == ("onnxruntime", 2, CLASSES)
    assert (info.golden, info.confidences) == ([], [])
    assert info.architecture == {"model": "cnn", "base": "frozen", "dense_units": 8, "dropout": 0.2}
    assert os.listdir(tmp_path) == ["b"]


def test_learning_curves_of_older_bundles_are_read(model: Classifier, tmp_path: Path) -> None:
    older = {"epoch": 1, "validation_loss": 0.5, "seconds": 1.5}
    for scores in (older, {**older, "validation_top_share": 0.4, "dead_units": 0.0, "cpu_seconds": 1.2}):
        write(tmp_path / "b", model, learning_curve=[scores])
        assert read_bundle(str(tmp_path / "b"))[0].learning_curve == [scores]


def test_a_bundle_from_before_jpegs_were_reduced_keeps_its_id_and_its_pixels(model: Classifier, tmp_path: Path) -> None:
    exact = replace(toy_data().preprocess, resize=Resize(32, reduced=False))
    old = write(tmp_path / "b", model, preprocess=exact)
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert described["preprocess"]["resize"] == {"size": 32, "mode": "stretch"}  # as it was written then
    assert read_info(str(tmp_path / "b")) == old
    assert old.id != write(tmp_path / "c", model).id


def test_a_bundle_lives_in_a_bucket(model: Classifier, bucket: str, tmp_path: Path) -> None:
    written = write(f"{bucket}/runs/b", model)
    for _ in range(2):
        info, again = read_bundle(f"{bucket}/runs/b", cache_dir=str(tmp_path))
        assert info == written
        assert same(model, again)
    add_scores(f"{bucket}/runs/b", metrics={"accuracy": 0.5})
    assert read_info(f"{bucket}/runs/b").metrics == {"accuracy": 0.5}


def test_a_frozen_base_is_in_the_bundle(backbone_file: Path, tmp_path: Path) -> None:
    config = ModelConfig("mobilenet_v2", weights=str(backbone_file))
    model = build(config, classes=3, image_size=32).eval()
    write(tmp_path / "b", model, preprocess=toy_data("mobilenet_v2").preprocess)
    info, again = read_bundle(str(tmp_path / "b"))
    assert same(model, again)
    assert info.architecture["base"] == "frozen"
    assert str(backbone_file) not in (tmp_path / "b" / "bundle.json").read_text()


def test_the_id_follows_what_decides_an_answer(model: Classifier, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = build(ModelConfig(dense_units=8), classes=3, image_size=32)
    padded = replace(toy_data().preprocess, mean=(0.1, 0.1, 0.1))
    variants: list[dict[str, Any]] = [
        {},
        {"temperature": 1.6},
        {"thresholds": {"confident": None}},
        {"classes": ("a", "b", "c")},
        {"preprocess": padded},
        {"engine": "torch"},
    ]
    infos = [write(tmp_path / "b", model, **values) for values in variants] + [write(tmp_path / "b", other)]
    assert len({info.id for info in infos}) == len(infos)
    assert all(len(info.id) == 12 and bundle_id(info) == info.id for info in infos)
    unchanged = write(tmp_path / "b", model, metrics={"a": 1}, fingerprints={"data": "other"}, learning_curve=[])
    assert unchanged.id == infos[0].id


def test_scores_come_later_and_keep_the_id(model: Classifier, tmp_path: Path) -> None:
    written = write(tmp_path / "b", model)
    counts = [0] * 15 + [3, 1, 4, 1, 5]
    updated = add_scores(str(tmp_path / "b"), metrics={"test": {"accuracy": 0.75}}, confidences=counts)
    expected = replace(written, metrics={"test": {"accuracy": 0.75}}, confidences=counts)
    assert read_info(str(tmp_path / "b")) == updated == expected
    with pytest.raises(ValueError, match="confidences must be a list of 20 whole numbers"):
        add_scores(str(tmp_path / "b"), metrics={}, confidences=[1, 2])
    assert read_info(str(tmp_path / "b")) == expected


def test_a_threshold_that_the_scores_take_away_changes_the_id(model: Classifier, tmp_path: Path) -> None:
    written = write(tmp_path / "b", model)
    updated = add_scores(str(tmp_path / "b"), metrics={}, thresholds={"confident": None})
    assert (updated.thresholds, updated.id) == ({"confident": None}, bundle_id(updated))
    assert updated.id != written.id
    assert read_info(str(tmp_path / "b")) == updated
    assert Predictor.load(str(tmp_path / "b")).info == updated


def test_a_bundle_of_format_1_is_still_one(model: Classifier, tmp_path: Path) -> None:
    """Its id was given when torch was the only engine, and there were no golden images."""
    written = write(tmp_path / "b", model, engine="torch")
    values = json.loads((tmp_path / "b" / "bundle.json").read_text())
    old = {name: value for name, value in values.items() if name not in ("golden", "confidences")}
    (tmp_path / "b" / "bundle.json").write_text(json.dumps({**old, "format_version": 1}))
    info, again = read_bundle(str(tmp_path / "b"))
    assert info == replace(written, format_version=1)
    assert same(model, again)
    assert Predictor.load(str(tmp_path / "b")).engine == "torch"
    added = add_scores(str(tmp_path / "b"), metrics={"a": 1})
    assert read_info(str(tmp_path / "b")) == added == replace(info, metrics={"a": 1})


def test_a_bundle_is_replaced_whole(model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "b", model)
    rename = os.rename

    def fail(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "b" and ".old" not in str(source):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match=r"cannot write the bundle .*free some space"):
        write(tmp_path / "b", model, temperature=3)
    assert read_info(str(tmp_path / "b")) == first
    monkeypatch.undo()
    second = write(tmp_path / "b", model, temperature=3)
    assert read_info(str(tmp_path / "b")) == second != first
    assert os.listdir(tmp_path) == ["b"]


def test_other_peoples_files_are_left_alone(model: Classifier, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no bundle"):
        write(tmp_path, model)
    with pytest.raises(UserError, match="is a file, not a folder"):
        write(tmp_path / "thesis.txt", model)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_what_would_not_be_read_is_not_written(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="temperature must be a number > 0, got -1"):
        write(tmp_path / "b", model, temperature=-1)
    with pytest.raises(ValueError, match="classes must be 2 or more, sorted"):
        write(tmp_path / "b", model, classes=("b", "a", "c"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("given", "used"), [("", "user"), ("~/hx", "home/hx")])
def test_copies_of_a_bucket_lie_where_the_settings_say(
    given: str, used: str, model: Classifier, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("data.cachefolder.platformdirs.user_cache_dir", lambda _: str(tmp_path / "user"))
    write(f"{bucket}/b", model)
    read_bundle(f"{bucket}/b", cache_dir=given)
    copies = [path for path in (tmp_path / used / "s3").rglob("*") if path.is_file()]
    assert len(copies) == 1
    assert not (tmp_path / "~").exists()


def test_classes_must_be_as_many_as_the_models(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes must be the model's 3, got 2"):
        write(tmp_path / "b", model, classes=("a", "b"))


def test_a_score_that_is_no_number_is_not_written(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "b", model, metrics={"accuracy": float("nan")})
    assert not (tmp_path / "b").exists()


def test_the_code_fingerprint_is_of_sources_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_fingerprint()
    assert before == code_fingerprint()
    assert len(before) == 64
    monkeypatch.setattr("models.fingerprint.metadata.version", lambda name: "0")
    assert code_fingerprint() != before
