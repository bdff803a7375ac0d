"""A search that is gone on with learns from the same pixels as before, or is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import UserError
from data.resizing import Resize
from tune.beginning import same_images
from tune.outputs import RunFolder


def collection(data: str = "d", size: int = 64, *, reduced: bool = True) -> Any:
    prints = {"data": data, "split": "s"}
    return SimpleNamespace(fingerprints=lambda: prints, resize=Resize(size, reduced=reduced))


def test_a_run_goes_on_with_the_same_pixels_only(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path), str(tmp_path))
    same_images(collection(), run, resume=False)
    same_images(collection(), run, resume=True)
    with pytest.raises(UserError, match="images or their labels have changed"):
        same_images(collection("other"), run, resume=True)
    with pytest.raises(UserError, match="another version of eagleray"):
        same_images(collection(reduced=False), run, resume=True)


def test_a_run_from_before_jpegs_were_reduced_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "fingerprints.json").write_text(json.dumps({"data": "d", "split": "s"}))
    run = RunFolder(str(tmp_path), str(tmp_path))
    with pytest.raises(UserError, match="whose networks saw other pixels"):
        same_images(collection(), run, resume=True)
    same_images(collection(), run, resume=False)  # a new one in its place notes its own
    same_images(collection(), run, resume=True)
