"""The folder that a trained model is: its weights, a few images with its answers to them, and bundle.json.

It stands alone and holds no code.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
import torch
from torch import Tensor

from data import cachefolder, store
from data.errors import UserError
from models.bundlecheck import check_fields
from models.bundlefolder import replace_folder
from models.catalog import Classifier, ModelConfig, build
from models.engine import EngineName, fastest
from models.fingerprint import code_fingerprint
from models.preprocess import Preprocess

FORMAT_VERSION = 2  # 1: scored by torch, without golden images and confidences
WEIGHTS_FILE, GOLDEN_FILE, INFO_FILE = "model.safetensors", "golden.safetensors", "bundle.json"


@dataclass(frozen=True)
class BundleInfo:
    """What bundle.json says."""

    id: str
    """First 12 hex digits of a sha256 over the weights and all else that decides an answer; scores do not change it."""
    format_version: int
    engine: EngineName
    """What runs the network: its scores, thresholds and golden answers come from it."""
    architecture: dict[str, Any]
    """The fields of ModelConfig but for `weights`: the weights are in the bundle."""
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float
    thresholds: dict[str, float | None]
    metrics: dict[str, Any]
    learning_curve: list[dict[str, Any]]
    fingerprints: dict[str, str]
    """sha256 of data, split and code, and of the files of weights and golden images."""
    created: str
    """UTC, ISO 8601."""
    golden: list[dict[str, Any]]
    """For each image in GOLDEN_FILE what it shows and what was answered (`models.golden`); may be empty."""
    confidences: list[int]
    """How many validation images have their top probability in each bin of `models.confidences`; may be empty."""

    @property
    def model_config(self) -> ModelConfig:
        """The architecture to build, whose weights come from the bundle."""
        weights = "none" if self.architecture["model"] == "cnn" else "bundle"
        return ModelConfig(**{**self.architecture, "weights": weights})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "classes": list(self.classes), "preprocess": self.preprocess.as_dict()}


def bundle_id(info: BundleInfo) -> str:
    """The id that the content of `info` gives."""
    parts: dict[str, Any] = {
        "weights": info.fingerprints["weights"],
        "architecture": info.architecture,
        "classes": list(info.classes),
        "preprocess": info.preprocess.as_dict(),
        "temperature": info.temperature,
        "thresholds": info.thresholds,
    }
    if info.engine != "torch":  # the only one there was when the first ids were given
        parts["engine"] = info.engine
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def write_bundle(
    folder: str,
    model: Classifier,
    *,
    classes: Sequence[str],
    preprocess: Preprocess,
    engine: EngineName | None = None,
    temperature: float = 1.0,
    thresholds: Mapping[str, float | None] | None = None,
    metrics: Mapping[str, Any] | None = None,
    learning_curve: Sequence[Mapping[str, Any]] = (),
    fingerprints: Mapping[str, str] | None = None,
) -> BundleInfo:
    """Write the whole model (a frozen base too) to a folder or `s3://` address, replacing a bundle that is there.

    A half-written bundle is never seen: locally the folder is renamed into place; on S3, bundle.json goes last and
    names the checksum of the weights. UserError if `folder` holds something else; ValueError for what `read_info` would
    refuse. `engine`: the one that it will be scored by, None is a CPU's fastest; `fingerprints`: data and split.
    """
    if len(classes) != model.classes:
        raise ValueError(f"classes must be the model's {model.classes}, got {len(classes)}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    blob = safetensors.torch.save(tensors)
    info = BundleInfo(
        id="",
        format_version=FORMAT_VERSION,
        engine=engine or fastest(torch.device("cpu")),
        architecture={
            field.name: getattr(model.config, field.name) for field in fields(model.config) if field.name != "weights"
        },
        classes=tuple(classes),
        preprocess=preprocess,
        temperature=float(temperature),
        thresholds=dict(thresholds or {"confident": None}),
        metrics=dict(metrics or {}),
        learning_curve=[dict(scores) for scores in learning_curve],
        fingerprints={
            **(fingerprints or {}),
            "code": code_fingerprint(),
            "weights": hashlib.sha256(blob).hexdigest(),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        golden=[],
        confidences=[],
    )
    info = replace(info, id=bundle_id(info))
    check_fields(info.as_dict())
    if store.is_remote(folder):
        store.write(store.join(folder, WEIGHTS_FILE), blob)
        store.write(store.join(folder, INFO_FILE), _encode(info))
    else:
        replace_folder(Path(folder), {WEIGHTS_FILE: blob, INFO_FILE: _encode(info)}, mark=INFO_FILE)
    return info


def _encode(info: BundleInfo) -> bytes:
    return (json.dumps(info.as_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def add_scores(
    folder: str,
    *,
    metrics: Mapping[str, Any],
    confidences: Sequence[int] = (),
    golden: Sequence[Mapping[str, Any]] = (),
    golden_file: bytes = b"",
    thresholds: Mapping[str, float | None] | None = None,
) -> BundleInfo:
    """Put into a bundle what is known only after the predictor has run on it, in place of what it had. Its id stays,
    unless other `thresholds` are given (None keeps those that it has).

    Golden images go first and bundle.json, which names their checksum, last. ValueError for what `read_info` would
    refuse.
    """
    info = read_info(folder)
    fingerprints = {name: value for name, value in info.fingerprints.items() if name != "golden"}
    if golden:
        fingerprints["golden"] = hashlib.sha256(golden_file).hexdigest()
    info = replace(
        info,
        metrics=dict(metrics),
        confidences=list(confidences),
        golden=[dict(answer) for answer in golden],
        fingerprints=fingerprints,
    )
    if thresholds is not None:
        info = replace(info, thresholds=dict(thresholds))
        info = replace(info, id=bundle_id(info))
    check_fields(info.as_dict())
    if golden:
        store.write(store.join(folder, GOLDEN_FILE), golden_file)
    store.write(store.join(folder, INFO_FILE), _encode(info))
    return info


def read_info(folder: str) -> BundleInfo:
    """bundle.json alone, checked in itself: types, ranges, id. UserError says what to do."""
    path = store.join(folder, INFO_FILE)
    if not store.exists(path):
        raise UserError(f"{folder}: no bundle there ({INFO_FILE} is missing); give the bundle folder of a finished run")
    try:
        values = json.loads(store.read(path))
        version = values["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as a bundle's description ({error}); write the bundle again") from error
    if isinstance(version, int) and version > FORMAT_VERSION:  # a later format's fields are not ours to check
        raise UserError(f"{path}: format {version}, this eagleray reads up to {FORMAT_VERSION}; update eagleray")
    try:
        values = {"golden": [], "confidences": [], **values} if version == 1 else values
        check_fields(values)
        names = [field.name for field in fields(BundleInfo)]
        info = BundleInfo(**{name: values[name] for name in names})
        info = replace(info, classes=tuple(info.classes), preprocess=Preprocess.from_dict(values["preprocess"]))
        _ = info.model_config
        computed = bundle_id(info)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: field missing or wrong ({error}); write the bundle again") from error
    if info.engine not in get_args(EngineName):
        known = " and ".join(get_args(EngineName))
        raise UserError(f"{path}: made for the engine {info.engine}, this eagleray has {known}; update eagleray")
    if computed != info.id:
        raise UserError(f"{path}: was changed by hand (its id is {info.id}, its content's {computed}); write it again")
    return info


def read_bundle(folder: str, *, cache_dir: str = "") -> tuple[BundleInfo, Classifier]:
    """The description and the network, eval mode, on the CPU, from a folder or `s3://` address.

    `cache_dir` keeps a copy of weights from S3; empty is the user's cache folder. Verifies the description, checksum
    and types of the weights, and the number of classes against the head; UserError says which failed and what to do.
    """
    info = read_info(folder)
    path = store.join(folder, WEIGHTS_FILE)
    tensors = _tensors(read_checked(folder, WEIGHTS_FILE, info.fingerprints["weights"], cache_dir=cache_dir), path)
    outputs = max((name for name in tensors if name.startswith("head.") and name.endswith(".bias")), default="")
    if not outputs or tensors[outputs].numel() != len(info.classes):
        head = tensors[outputs].numel() if outputs else "no"
        raise UserError(
            f"{folder}: {len(info.classes)} classes in {INFO_FILE}, but the head has {head} outputs; "
            "write the bundle again"
        )
    try:
        with torch.device("meta"):  # the structure only: the tensors come from the file
            model = build(
                info.model_config, classes=len(info.classes), image_size=info.preprocess.resize.size, load_weights=False
            )
        _check_types(model, tensors)
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, OverflowError) as error:  # the latter two: sizes that are beyond any tensor
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not fit {info.architecture} ({reason}); write the bundle again") from error
    model = model.to(memory_format=torch.channels_last)
    return info, model.requires_grad_(False).eval()


def read_checked(folder: str, name: str, sha256: str, *, cache_dir: str = "") -> bytes:
    """The file `name` of a bundle; UserError unless it is there and its checksum is `sha256`."""
    path = store.join(folder, name)
    if not store.exists(path):
        raise UserError(f"{path}: missing; copy the whole bundle folder")
    blob = store.read(path, cache_dir=cachefolder.resolve(cache_dir))
    found = hashlib.sha256(blob).hexdigest()
    if found != sha256:
        raise UserError(
            f"{path}: damaged or being replaced (sha256 {found[:12]}…, {INFO_FILE} says {sha256[:12]}…); "
            "copy the bundle again"
        )
    return blob


def _tensors(blob: bytes, path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(blob)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:  # KeyError: a type torch lacks
        raise UserError(f"{path}: not a safetensors file of weights ({error}); write the bundle again") from error


def _check_types(model: Classifier, tensors: Mapping[str, Tensor]) -> None:
    """TypeError unless each tensor has the network's type (float32, whole numbers for counts): assigning keeps any."""
    for name, wanted in model.state_dict().items():
        if name in tensors and tensors[name].dtype != wanted.dtype:
            raise TypeError(f"{name} must be {wanted.dtype}, got {tensors[name].dtype}")
