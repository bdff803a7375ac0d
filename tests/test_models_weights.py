"""Pretrained weights load from what people have, and say what was expected where they do not fit."""

import os
import pickle
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from data import store
from data.errors import UserError
from models import weights
from models.catalog import ModelConfig, build, build_base


@pytest.fixture(scope="module")
def state() -> Mapping[str, Tensor]:
    """A whole resnet18 of torchvision's, classifier of 1000 classes and all."""
    torch.manual_seed(3)
    values: Mapping[str, Tensor] = torchvision.models.resnet18(weights=None).state_dict()
    return values


def load(path: Path | str, model: Any = "resnet18") -> Mapping[str, Tensor]:
    return build_base(ModelConfig(model, weights=str(path))).state_dict()


def check(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    assert len(found) == 120
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_a_whole_state_dict_loads_without_its_classifier(state: Mapping[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "r.pth")
    check(load(tmp_path / "r.pth"), state)
    network = build(ModelConfig("resnet18", weights=str(tmp_path / "r.pth")), classes=3, image_size=32)
    assert network.head[-1].out_features == 3  # type: ignore[index]


def test_a_backbone_without_classifier_counts_or_prefix_loads(state: Mapping[str, Tensor], tmp_path: Path) -> None:
    bare = {
        f"module.{name}": value
        for name, value in state.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    torch.save({"epoch": 3, "state_dict": bare}, tmp_path / "r.pth")
    found = load(tmp_path / "r.pth")
    assert int(found["bn1.num_batches_tracked"]) == 0
    check({**found, **{n: v for n, v in state.items() if n.endswith("tracked")}}, state)


def test_safetensors_and_half_precision_load(state: Mapping[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(dict(state), tmp_path / "r.safetensors")
    check(load(tmp_path / "r.safetensors"), state)
    torch.save({n: v.half() if v.is_floating_point() else v for n, v in state.items()}, tmp_path / "half.pth")
    assert load(tmp_path / "half.pth")["conv1.weight"].dtype == torch.float32


def test_real_backbone_loads(backbone_file: Path) -> None:
    found = load(backbone_file, "mobilenet_v2")
    theirs = torch.load(backbone_file, weights_only=True)
    assert len(found) == len(theirs) == 312
    assert all(torch.equal(value, theirs[name]) for name, value in found.items())


def test_a_bucket_serves_weights(state: Mapping[str, Tensor], bucket: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "r.pth")
    store.write(f"{bucket}/r.pth", (tmp_path / "r.pth").read_bytes())
    check(load(f"{bucket}/r.pth"), state)


@pytest.mark.parametrize("model", ["resnet34", "resnet50", "mobilenet_v2"])
def test_another_networks_weights_are_named(model: str, state: Mapping[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "r.pth")
    with pytest.raises(UserError, match=rf"r.pth do not fit {model}: expected .*found .*weights of a {model}"):
        load(tmp_path / "r.pth", model)


def test_a_wider_layer_is_named_with_both_shapes(state: Mapping[str, Tensor], tmp_path: Path) -> None:
    torch.save({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "r.pth")
    with pytest.raises(UserError, match=r"expected conv1.weight \(64, 3, 7, 7\), found conv1.weight \(64, 1, 7, 7\)"):
        load(tmp_path / "r.pth")


class _Wicked:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("wicked",)


@pytest.mark.parametrize("name", ["r.pth", "r.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not a file of weights", b"hello", b"PK\x03\x04", pickle.dumps(_Wicked()), pickle.dumps(range(2))]
)
def test_what_is_no_file_of_tensors_runs_nothing(
    content: bytes, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: not a file of weights .*give a torch state dict") as caught:
        load(tmp_path / name)
    assert "weights_only" not in str(caught.value)  # torch's advice to run whatever the file holds
    assert not (tmp_path / "wicked").exists()


def test_a_file_of_something_else_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "r.pth")
    with pytest.raises(UserError, match=r"r.pth: holds no state dict .*give --weights FILE"):
        load(tmp_path / "r.pth")


def test_a_wicked_checkpoint_in_torchs_own_format_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": _Wicked()}, tmp_path / "r.pth")
    with pytest.raises(UserError, match=r"not a file of weights") as caught:
        load(tmp_path / "r.pth")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "wicked").exists()


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; give --weights FILE"):
        load(tmp_path / "nothing.pth")


def test_without_a_network_the_message_says_how_to_give_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"cannot download https://.*resnet18.*without a network give --weights FILE"):
        build_base(ModelConfig("resnet18"), cache_dir=str(tmp_path))


def test_a_download_happens_once_with_its_checksum(
    state: Mapping[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, target: str, checksum: str, progress: bool) -> None:
        asked.append((url.rsplit("/", 1)[1], checksum))
        torch.save(state, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for _ in range(2):
        check(build_base(ModelConfig("resnet18"), cache_dir=str(tmp_path)).state_dict(), state)
    assert asked == [("resnet18-f37072fd.pth", "f37072fd")]


def test_what_torch_downloaded_before_is_used(
    state: Mapping[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    check(build_base(ModelConfig("resnet18"), cache_dir=str(tmp_path)).state_dict(), state)


def test_identity_is_of_the_content() -> None:
    assert weights.identity(b"a") == weights.identity(b"a") != weights.identity(b"b")
