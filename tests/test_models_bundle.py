"""A bundle stands alone, is never half there, and says what is wrong with it."""

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from data.errors import UserError
from models.bundle import BundleInfo, bundle_id, read_bundle, read_info, update_metrics, write_bundle
from models.catalog import Classifier, ModelConfig, build
from models.fingerprint import code_fingerprint
from models.preprocess import Preprocess
from tests.models_toys import CLASSES, toy_data


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return build(ModelConfig(dense_units=8), classes=3, image_size=32).eval()


def write(folder: str | Path, model: Classifier, **values: Any) -> BundleInfo:
    options = {
        "classes": CLASSES,
        "preprocess": toy_data().preprocess,
        "temperature": 1.5,
        "thresholds": {"confident": 0.9},
        "learning_curve": [{"epoch": 1, "validation_loss": 0.5}],
        "fingerprints": {"data": "d", "split": "s"},
    }
    return write_bundle(str(folder), model, **{**options, **values})


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
    assert (info.engine, info.format_version, info.classes) == ("torch", 1, CLASSES)
    assert info.architecture == {"model": "cnn", "base": "frozen", "dense_units": 8, "dropout": 0.2}
    assert os.listdir(tmp_path) == ["b"]


def test_a_bundle_lives_in_a_bucket(model: Classifier, bucket: str, tmp_path: Path) -> None:
    written = write(f"{bucket}/runs/b", model)
    for _ in range(2):
        info, again = read_bundle(f"{bucket}/runs/b", cache_dir=str(tmp_path))
        assert info == written
        assert same(model, again)
    update_metrics(f"{bucket}/runs/b", {"accuracy": 0.5})
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
    ]
    infos = [write(tmp_path / "b", model, **values) for values in variants] + [write(tmp_path / "b", other)]
    assert len({info.id for info in infos}) == len(infos)
    assert all(len(info.id) == 12 and bundle_id(info) == info.id for info in infos)
    unchanged = write(tmp_path / "b", model, metrics={"a": 1}, fingerprints={"data": "other"}, learning_curve=[])
    assert unchanged.id == infos[0].id


def test_scores_come_later_and_keep_the_id(model: Classifier, tmp_path: Path) -> None:
    written = write(tmp_path / "b", model)
    updated = update_metrics(str(tmp_path / "b"), {"test": {"accuracy": 0.75}})
    assert read_info(str(tmp_path / "b")) == updated == replace(written, metrics={"test": {"accuracy": 0.75}})


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


def edit(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "bundle.json"
        content = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({name: value for name, value in content.items() if value != "gone"}))

    return change


def reidentify(**values: Any) -> Callable[[Path], None]:
    """A bundle.json that is consistent in itself, but does not fit its weights."""

    def change(folder: Path) -> None:
        info = replace(read_info(str(folder)), **values)
        (folder / "bundle.json").write_text(json.dumps(replace(info, id=bundle_id(info)).as_dict()))

    return change


def cut(folder: Path) -> None:
    blob = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))


def narrow(folder: Path) -> None:
    """Weights of another network under a checksum that is right."""
    other = write(folder.with_name("other"), build(ModelConfig(dense_units=4), classes=3, image_size=32))
    shutil.copy(folder.with_name("other") / "model.safetensors", folder)
    reidentify(fingerprints=other.fingerprints)(folder)


def rewrite(**values: Any) -> Callable[[Path], None]:
    """Values of any type under an id that is right: what another program may have written."""

    def change(folder: Path) -> None:
        edit(**values)(folder)
        info: Any = BundleInfo(**json.loads((folder / "bundle.json").read_text()))
        with contextlib.suppress(AttributeError, TypeError, ValueError):  # of some values no id can be made
            edit(id=bundle_id(replace(info, preprocess=Preprocess.from_dict(info.preprocess))))(folder)

    return change


def reweigh(blob: bytes) -> Callable[[Path], None]:
    """Other bytes as weights, under a checksum and an id that are right."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(blob)
        reidentify(fingerprints={"weights": hashlib.sha256(blob).hexdigest()})(folder)

    return change


def halve(folder: Path) -> None:
    """The right tensors in half precision."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    reweigh(safetensors.torch.save({name: value.half() for name, value in tensors.items()}))(folder)


def one_tensor(kind: str, shape: list[int], size: int) -> bytes:
    header = json.dumps({"head.4.bias": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


PIXELS = toy_data().preprocess.as_dict()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewrite(temperature="1"), "temperature must be a number > 0, got '1'"),
        (rewrite(temperature=-1), "temperature must be a number > 0, got -1"),
        (rewrite(temperature=0), "temperature must be"),
        (rewrite(temperature=True), "temperature must be"),
        (rewrite(temperature=float("nan")), "temperature must be"),
        (rewrite(temperature=10**400), "temperature must be"),
        (rewrite(thresholds=None), "thresholds must be an object, got None"),
        (rewrite(thresholds={"confident": "x"}), "threshold confident must be null or a number from 0 to 1, got 'x'"),
        (rewrite(thresholds={"confident": 95}), "threshold confident must be"),
        (rewrite(classes=["auk", "auk", "crane"]), "classes must be 2 or more, sorted, none of them twice"),
        (rewrite(classes=["crane", "booby", "auk"]), "classes must be 2 or more, sorted"),
        (rewrite(classes=["auk"]), "classes must be 2 or more"),
        (rewrite(classes=[1, 2, 3]), "classes must be a list of texts"),
        (rewrite(classes=["", "auk", "booby"]), "classes must be a list of texts that are not empty"),
        (rewrite(classes="abc"), "classes must be a list of texts"),
        (rewrite(classes=["auk", "booby", "\ud800"]), "field missing or wrong"),
        (rewrite(metrics=[]), "metrics must be an object"),
        (rewrite(learning_curve=[1]), "learning_curve must hold objects"),
        (rewrite(fingerprints={"weights": 1}), "fingerprints must be texts"),
        (rewrite(format_version=0), "format_version must be a whole number >= 1, got 0"),
        (rewrite(format_version="1"), "format_version must be a whole number >= 1, got '1'"),
        (rewrite(architecture={"model": "cnn", "dense_units": 8.0}), "dense_units must be a whole number"),
        (rewrite(architecture={"model": "cnn", "dense_units": 10**30}), "does not fit"),
        (rewrite(preprocess={**PIXELS, "resize": {"size": 32.0}}), "size must be a whole number"),
        (rewrite(preprocess={**PIXELS, "mean": [float("inf"), 0, 0]}), "3 finite numbers"),
        (reweigh(b""), "not a safetensors file of weights"),
        (reweigh(b"garbage" * 20), "not a safetensors file of weights"),
        (reweigh(one_tensor("F8_E8M0", [3], 3)), "not a safetensors file of weights"),
        (reweigh(one_tensor("F32", [], 4)), "the head has 1 outputs"),
        (reweigh(safetensors.torch.save({})), "the head has no outputs"),
        (halve, r"must be torch.float32, got torch.float16.*write the bundle again"),
    ],
)
def test_a_right_id_and_checksum_excuse_nothing(
    damage: Callable[[Path], Any], message: str, model: Classifier, tmp_path: Path
) -> None:
    write(tmp_path / "b", model)
    damage(tmp_path / "b")
    with pytest.raises(UserError, match=message):
        read_bundle(str(tmp_path / "b"))


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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit(format_version=2), "format 2, this eagleray reads up to 1; update eagleray"),
        (edit(engine="onnx"), "made for the engine onnx.*update eagleray"),
        (edit(temperature=2.0), "was changed by hand.*write it again"),
        (edit(classes="gone"), "field missing or wrong.*classes"),
        (edit(architecture={"model": "vgg"}), "field missing or wrong.*model must be one of"),
        (edit(preprocess={"resize": {"size": 32}}), "field missing or wrong"),
        (reidentify(classes=("a", "b")), "2 classes in bundle.json, but the head has 3 outputs"),
        (reidentify(architecture={"model": "cnn", "dense_units": 9}), "does not fit .*write the bundle again"),
        (cut, r"damaged or being replaced \(sha256 .*copy the bundle again"),
        (narrow, "does not fit"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing; copy the whole bundle folder"),
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle there .bundle.json is missing"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "not readable as a bundle's description"),
        (lambda folder: (folder / "bundle.json").write_text("[]"), "not readable as a bundle's description"),
    ],
)
def test_what_is_wrong_is_said(damage: Callable[[Path], Any], message: str, model: Classifier, tmp_path: Path) -> None:
    write(tmp_path / "b", model)
    damage(tmp_path / "b")
    with pytest.raises(UserError, match=message):
        read_bundle(str(tmp_path / "b"))


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
