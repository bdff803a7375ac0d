"""The engines behind a frozen network: equal to torch within the stated tolerance, and silent."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from data.resizing import Resize
from models import engine
from models.bundle import write_bundle
from models.catalog import ARCHITECTURES, ModelConfig, Standardise, build, build_base
from models.inference import BATCH, _in_full_precision, engine_on, images_at_once
from models.onnxgraph import to_onnx
from models.predictor import Prediction, Predictor
from models.preprocess import Preprocess
from tests.models_toys import CLASSES, settle, toy_images

CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of the largest output: what `models.engine` promises


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the largest output."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_every_network_gives_what_torch_gives(model: str) -> None:
    torch.manual_seed(0)
    network = settle(build_base(ModelConfig(model, weights="none", base="finetune")))  # type: ignore[arg-type]
    forward = engine.load("onnxruntime", network, CPU)
    plain = engine.load("torch", network, CPU)
    for count, size in ((1, 32), (5, 45)):  # of one session: neither the number nor the size of images is fixed
        images = torch.randn(count, 3, size, size)
        assert apart(forward(images), plain(images)) < TOLERANCE / 10
        assert apart(forward(images.contiguous(memory_format=torch.channels_last)), plain(images)) < TOLERANCE / 10


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig("mobilenet_v2", weights="some.pth")])
def test_a_whole_classifier_goes_through_as_well(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build(config, classes=4, image_size=32, load_weights=False)
    if config.frozen:
        assert isinstance(model.head, nn.Sequential)
        assert isinstance(model.head[0], Standardise)
        model.head[0].fit(np.random.default_rng(0).random((8, 1280), np.float32))
    settle(model)
    images = torch.randn(3, 3, 32, 32)
    logits = engine.load("onnxruntime", model, CPU)(images)
    assert logits.shape == (3, 4)
    with torch.inference_mode():
        assert apart(logits, model(images)) < TOLERANCE / 10


def test_real_weights_agree_too(backbone_file: Path) -> None:
    base = build_base(ModelConfig("mobilenet_v2", weights=str(backbone_file)))
    images = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 4 - 2
    ours, theirs = (engine.load(name, base, CPU)(images) for name in ("onnxruntime", "torch"))
    for mine, other in zip(ours, theirs, strict=True):  # of each image, not only of the batch
        assert apart(mine, other) < TOLERANCE


def test_an_image_alone_gets_what_it_gets_in_a_batch() -> None:
    network = build_base(ModelConfig("resnet18", weights="none", base="finetune"))
    forward, images = engine.load("onnxruntime", network, CPU), torch.randn(6, 3, 64, 64)
    assert apart(torch.cat([forward(image[None]) for image in images]), forward(images)) < 1e-5


@pytest.mark.parametrize(("name", "variance"), [("cnn", 1.0), ("resnet18", 1.0), ("mobilenet_v2", 0.2)])
def test_predictors_of_both_engines_give_the_same_answers(name: str, variance: float, tmp_path: Path) -> None:
    """Labels, and probabilities within what is promised between engines, of a network that is sure of some of them."""
    torch.manual_seed(0)
    config = ModelConfig() if name == "cnn" else ModelConfig(name, weights="none", base="finetune")  # type: ignore[arg-type]
    network = build(config, classes=3, image_size=40)
    settle(network, variance)
    preprocess = Preprocess.for_model(name, Resize(40))
    images = list(toy_images(12, size=48)[0])
    answers: dict[str, list[Prediction]] = {}
    for each in get_args(engine.EngineName):
        folder = str(tmp_path / each)
        write_bundle(folder, network, classes=CLASSES, preprocess=preprocess, engine=each, temperature=0.05)
        predictor = Predictor.load(folder)
        assert predictor.engine == each
        answers[each] = [answer for answer in predictor.predict(images) if isinstance(answer, Prediction)]
    assert len(answers["torch"]) == 12
    spread = np.ptp([answer.probabilities for answer in answers["torch"]], axis=0).max()
    assert spread > 0.01
    for mine, other in zip(answers["onnxruntime"], answers["torch"], strict=True):
        assert mine.label == other.label
        np.testing.assert_allclose(mine.probabilities, other.probabilities, rtol=0, atol=TOLERANCE)


def test_the_threads_of_a_predictor_are_its_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    session = onnxruntime.InferenceSession

    def spy(model: bytes, options: onnxruntime.SessionOptions, **values: Any) -> onnxruntime.InferenceSession:
        given.append(options.intra_op_num_threads)
        return session(model, options, **values)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    torch.manual_seed(0)
    network = build(ModelConfig(dense_units=8), classes=3, image_size=32)
    write_bundle(str(tmp_path / "b"), network, classes=CLASSES, preprocess=Preprocess(Resize(32)))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, None):
            Predictor.load(str(tmp_path / "b"), threads=threads)
    finally:
        torch.set_num_threads(before)
    assert given == [1, 2, 2]


def test_a_bundle_of_one_engine_on_another_device() -> None:
    """On a GPU both go through torch; on a CPU each keeps the engine that it was scored by."""
    assert [engine_on(name, CPU) for name in ("onnxruntime", "torch")] == ["onnxruntime", "torch"]
    assert [engine_on(name, torch.device("cuda:0")) for name in ("onnxruntime", "torch")] == ["torch", "torch"]


def test_a_gpu_computes_in_full_precision_for_a_prediction_and_only_then() -> None:
    """The switch is there without a GPU too."""
    before = torch.backends.cudnn.allow_tf32
    with _in_full_precision(CPU):
        assert torch.backends.cudnn.allow_tf32 == before
    with contextlib.suppress(KeyError), _in_full_precision(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 == before


def test_larger_images_go_in_smaller_batches() -> None:
    assert [images_at_once("onnxruntime", side) for side in (8, 64, 128, 224, 512, 4096)] == [BATCH, 32, 12, 4, 1, 1]
    assert [images_at_once("torch", side) for side in (8, 224, 448)] == [BATCH, 32, 8]


def test_a_layer_without_an_onnx_form_is_named() -> None:
    with pytest.raises(NotImplementedError, match="no ONNX form of Tanh"):
        to_onnx(nn.Sequential(nn.Tanh()).eval())
    with pytest.raises(AssertionError, match="eval"):
        to_onnx(nn.Sequential(nn.ReLU()))


def test_the_cpu_has_its_own_engine_and_a_gpu_keeps_torch() -> None:
    assert engine.fastest(CPU) == "onnxruntime"
    assert engine.fastest(torch.device("cuda")) == "torch"


def test_nothing_is_sent_anywhere(tmp_path: Path) -> None:
    """ONNX Runtime's reports start with an identifier of the device in the user's cache folder, unless switched off."""
    code = (
        "import torch; from models import engine; network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1)); "
        "print(engine.load('onnxruntime', network, torch.device('cpu'))(torch.ones(1, 3, 2, 2)).shape)"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", code], env=home, cwd=root, capture_output=True, text=True, check=True)
    assert "[1, 1, 2, 2]" in done.stdout
    assert list(tmp_path.rglob("*onnx*")) == []
