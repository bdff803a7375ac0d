"""What bundle.json may hold: types and ranges, checked before anything is built from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.confidences import BINS


def check_fields(values: Mapping[str, Any]) -> None:
    """ValueError names the first field of a bundle's description that is wrong, KeyError one that is missing.

    A bundle travels between people, so its id and checksum may be right and its content still be anything. What
    `ModelConfig` and `Preprocess` check themselves is left to them.
    """
    version = values["format_version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"format_version must be a whole number >= 1, got {version!r}")
    for name in ("id", "engine", "created"):
        _require(values, name, str, "a text")
    for name in ("architecture", "metrics", "preprocess", "thresholds", "fingerprints"):
        _require(values, name, dict, "an object")
    _require(values, "learning_curve", list, "a list")
    if not all(isinstance(scores, dict) for scores in values["learning_curve"]):
        raise ValueError("learning_curve must hold objects")
    if not all(isinstance(value, str) for value in values["fingerprints"].values()):
        raise ValueError("fingerprints must be texts")
    _check_classes(values["classes"])
    if not is_number(values["temperature"]) or values["temperature"] <= 0:
        raise ValueError(f"temperature must be a number > 0, got {values['temperature']!r}")
    for name, threshold in values["thresholds"].items():
        if threshold is not None and not (is_number(threshold) and 0 <= threshold <= 1):
            raise ValueError(f"threshold {name} must be null or a number from 0 to 1, got {threshold!r}")
    _check_confidences(values["confidences"])
    _check_golden(values["golden"], values["classes"], "golden" in values["fingerprints"])
    # The checks of ModelConfig and Resize are on ranges: 32.0 would pass them and fail in torch.
    for part, name in ((values["architecture"], "dense_units"), (values["preprocess"]["resize"], "size")):
        if name in part and type(part[name]) is not int:
            raise ValueError(f"{name} must be a whole number, got {part[name]!r}")


def is_number(value: object) -> bool:
    """Whether JSON gave a finite number. True and false, which Python counts as numbers, are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _require(values: Mapping[str, Any], name: str, kind: type, words: str) -> None:
    if not isinstance(values[name], kind):
        raise ValueError(f"{name} must be {words}, got {values[name]!r}")


def _check_classes(classes: Any) -> None:
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f"classes must be a list of texts that are not empty, got {classes!r}")
    if len(classes) < 2 or classes != sorted(set(classes)):
        raise ValueError(f"classes must be 2 or more, sorted, none of them twice, got {classes!r}")
    for name in classes:
        name.encode()  # half of a surrogate pair passes as JSON, and would fail in every answer


def _check_confidences(counts: Any) -> None:
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not whole or len(counts) not in (0, BINS):
        raise ValueError(f"confidences must be a list of {BINS} whole numbers >= 0, or empty, got {counts!r}")


def _check_golden(answers: Any, classes: Sequence[str], has_checksum: bool) -> None:
    """What `models.golden.Answer` is made of: the class that an image shows, the one that was answered, and all
    probabilities by class."""
    _require({"golden": answers}, "golden", list, "a list")
    if bool(answers) != has_checksum:
        raise ValueError("golden and fingerprints.golden must be given both or neither")
    for answer in answers:
        if not isinstance(answer, dict) or not {"label", "predicted", "probabilities"} <= answer.keys():
            raise ValueError(f"golden must hold objects of label, predicted and probabilities, got {answer!r}")
        if answer["label"] not in classes or answer["predicted"] not in classes:
            raise ValueError(f"golden must name classes, got {answer['label']!r} and {answer['predicted']!r}")
        shares = answer["probabilities"]
        if not isinstance(shares, dict) or set(shares) != set(classes):
            raise ValueError(f"golden must give a probability for each class, got {shares!r}")
        if not all(is_number(share) and 0 <= share <= 1 for share in shares.values()):
            raise ValueError(f"golden must give probabilities from 0 to 1, got {shares!r}")
