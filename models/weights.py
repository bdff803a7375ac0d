"""Pretrained weights of a backbone: torchvision's own download, a file, or an s3:// address."""

import hashlib
import io
import logging
import os
import re
import urllib.error
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn

from data import cachefolder, store
from data.errors import UserError

log = logging.getLogger(__name__)

# torchvision's first release of ImageNet weights, which every architecture here has. The later ones score higher on
# ImageNet, but were trained with label smoothing and mixing, which is known to make frozen features worse for other
# tasks (Kornblith et al. 2021, "Why do better loss functions lead to less transferable features?").
_RELEASE = "IMAGENET1K_V1"

_GIVE_A_FILE = "give --weights FILE (a state dict from torchvision, with or without its classifier) or --weights none"


def classifier_name(model: str) -> str:
    """What torchvision calls the last layer of `model`."""
    return "classifier" if model == "mobilenet_v2" else "fc"


def read(model: str, source: str, cache_dir: str) -> bytes:
    """The file of weights as it is; "torchvision" downloads it once into the cache folder."""
    if source == "torchvision":
        return _torchvision_file(model, cache_dir).read_bytes()
    if not store.is_remote(source) and not Path(source).is_file():
        raise UserError(f"weights {source}: no such file; {_GIVE_A_FILE}")
    return store.read(source, cache_dir=cachefolder.resolve(cache_dir))  # trials share one copy of a bucket's file


def identity(blob: bytes) -> str:
    """sha256 of the file: what the features computed with it are filed under."""
    return hashlib.sha256(blob).hexdigest()


def _torchvision_file(model: str, cache_dir: str) -> Path:
    import torchvision  # slow to import, and only backbones need it

    url: str = torchvision.models.get_model_weights(model)[_RELEASE].url
    name = url.rsplit("/", 1)[1]
    for folder in (Path(cachefolder.resolve(cache_dir)) / "weights", Path(torch.hub.get_dir()) / "checkpoints"):
        if (folder / name).is_file():
            return folder / name
    folder = Path(cachefolder.resolve(cache_dir)) / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):  # trials start together: one downloads, the others wait
        if not (folder / name).is_file():
            log.warning("downloading the weights of %s once: %s -> %s", model, url, folder)
            _download(url, folder / name)
    return folder / name


def _download(url: str, target: Path) -> None:
    match = re.search(r"-([0-9a-f]{8,})\.", target.name)  # torchvision puts the start of the sha256 into the name
    try:
        torch.hub.download_url_to_file(url, str(target), match and match.group(1), progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(f"cannot download {url} ({error}); without a network {_GIVE_A_FILE}") from error


def _parse(blob: bytes, source: str) -> dict[str, Tensor]:
    """A state dict out of a safetensors or torch file, without running anything that lies in it."""
    try:
        if os.path.splitext(source)[1] == ".safetensors":
            return safetensors.torch.load(blob)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a foreign pickle before it refuses it; we say it below
            content: Any = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except Exception as error:
        # Of bytes that are no such file torch raises nearly anything (KeyError of a text), and of one that holds more
        # than tensors it advises to load it without protection: neither is for the user's eyes.
        raise UserError(
            f"weights {source}: not a file of weights (no tensors by name, or more than tensors in it); give a torch "
            "state dict, as torch.save(model.state_dict(), FILE) writes it, or .safetensors, or --weights none"
        ) from error
    for wrapper in ("state_dict", "model", "model_state_dict"):  # how training scripts wrap what they save
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"weights {source}: holds no state dict (name -> tensor); {_GIVE_A_FILE}")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_into(base: nn.Module, model: str, source: str, cache_dir: str) -> None:
    """Fill `base` (a torchvision backbone without its classifier, its tensors on any device) from `source`."""
    fill(base, model, source, read(model, source, cache_dir))


def fill(base: nn.Module, model: str, source: str, blob: bytes) -> None:
    """Fill `base` from the bytes of a file of weights. A classifier in it is ignored: the head is ours."""
    found = {
        name: value.float() if value.is_floating_point() else value
        for name, value in _parse(blob, source).items()
        if not name.startswith(classifier_name(model) + ".")
    }
    expected = base.state_dict()
    for name in expected:
        if name.endswith("num_batches_tracked"):  # absent from old files, and used by nothing here
            found.setdefault(name, torch.tensor(0))
    wrong = sorted(name for name in expected if name not in found) or sorted(set(found) - set(expected))
    wrong = wrong or [name for name in expected if found[name].shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        want = f"{name} {tuple(expected[name].shape)}" if name in expected else f"no {name}"
        got = f"{name} {tuple(found[name].shape)}" if name in found else f"names such as {next(iter(found), 'none')}"
        raise UserError(
            f"weights {source} do not fit {model}: expected {want}, found {got} ({len(wrong)} tensors differ); "
            f"give the weights of a {model} or the --model that they belong to"
        )
    base.load_state_dict(found, assign=True)
    base.requires_grad_(True)
