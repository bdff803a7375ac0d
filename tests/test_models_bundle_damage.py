"""A bundle that was changed, damaged or made by another program says what is wrong with it."""

import contextlib
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from data.errors import UserError
from models.bundle import BundleInfo, bundle_id, read_bundle, read_info
from models.catalog import Classifier, ModelConfig, build
from models.preprocess import Preprocess
from tests.models_bundles import toy_model, write
from tests.models_toys import CLASSES, toy_data


@pytest.fixture(scope="module")
def model() -> Classifier:
    return toy_model()


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


def regild(answer: Any) -> Callable[[Path], None]:
    """One golden answer of any kind, under a checksum."""
    return rewrite(golden=[answer], fingerprints={"weights": "0" * 64, "golden": "0" * 64})


EQUAL = dict.fromkeys(CLASSES, 1 / 3)
ANSWER: dict[str, Any] = {"label": "auk", "predicted": "auk", "probabilities": EQUAL}
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
        (rewrite(confidences={}), "confidences must be a list of 20 whole numbers"),
        (rewrite(confidences=[1] * 19), "confidences must be a list of 20 whole numbers"),
        (rewrite(confidences=[1] * 19 + [-1]), "confidences must be a list of 20 whole numbers"),
        (rewrite(confidences=[1] * 19 + [True]), "confidences must be a list of 20 whole numbers"),
        (rewrite(golden={}), "golden must be a list"),
        (rewrite(golden=[1]), "golden and fingerprints.golden must be given both or neither"),
        (rewrite(fingerprints={"weights": "0", "golden": "0"}), "both or neither"),
        (regild(1), "golden must hold objects of label, predicted and probabilities, got 1"),
        (regild({"label": "auk", "predicted": "auk"}), "golden must hold objects"),
        (regild({**ANSWER, "label": "eel"}), "golden must name classes, got 'eel' and 'auk'"),
        (regild({**ANSWER, "predicted": ["auk"]}), "golden must name classes"),
        (regild({**ANSWER, "probabilities": [1, 0, 0]}), "golden must give a probability for each class"),
        (regild({**ANSWER, "probabilities": {"auk": 1}}), "golden must give a probability for each class"),
        (regild({**ANSWER, "probabilities": {**EQUAL, "auk": 1.5}}), "golden must give probabilities from 0 to 1"),
        (regild({**ANSWER, "probabilities": {**EQUAL, "auk": float("nan")}}), "golden must give probabilities"),
        (rewrite(format_version=0), "format_version must be a whole number >= 1, got 0"),
        (rewrite(format_version="1"), "format_version must be a whole number >= 1, got '1'"),
        (rewrite(architecture={"model": "cnn", "dense_units": 8.0}), "dense_units must be a whole number"),
        (rewrite(architecture={"model": "cnn", "dense_units": 10**30}), "does not fit"),
        (rewrite(preprocess={**PIXELS, "resize": {"size": 32.0}}), "size must be a whole number"),
        (rewrite(preprocess={**PIXELS, "resize": {"size": 32, "reduced": "no"}}), "reduced must be true or false"),
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit(format_version=3), "format 3, this eagleray reads up to 2; update eagleray"),
        (edit(engine="onnx"), "made for the engine onnx, this eagleray has torch and onnxruntime; update eagleray"),
        (edit(engine="torch"), "was changed by hand.*write it again"),
        (edit(confidences="gone"), "field missing or wrong.*confidences"),
        (edit(golden="gone"), "field missing or wrong.*golden"),
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
