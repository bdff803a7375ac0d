"""One Ray for the whole test session, a bucket on loopback, and the real images where they lie beside the project."""

import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from models.processes import prepare_environment

if TYPE_CHECKING:
    from tests.cloud import Cloud
    from tune.settings import SearchConfig
    from tune.trial import Job

prepare_environment()  # before anything imports Ray

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that name no folder must not read or write the user's own: caches, keys, notes of running endpoints."""
    for kind in ("cache", "config", "state"):
        os.environ[f"XDG_{kind.upper()}_HOME"] = str(tmp_path_factory.mktemp(f"user-{kind}"))


@pytest.fixture(scope="session")
def ray_cluster(user_cache: None) -> Iterator[None]:
    """A local Ray with four logical CPUs, shared by all tests that need one: starting Ray is what costs."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        dashboard_port=0,
        include_dashboard=True,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores are shared with Ray's workers; torch's spinning threads would only take turns."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def shared_data() -> Path:
    """Real labelled images; they are not part of the project."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real image sets do not lie beside this checkout")
    return folder


@pytest.fixture
def backbone_file() -> Path:
    """Real pretrained weights; they are not part of the project."""
    file = SHARED / "weights" / "mobilenet_v2_imagenet_features.pth"
    if not file.is_file():
        pytest.skip("the pretrained backbone does not lie beside this checkout")
    return file


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One cache for the session, so that the generated sample is rendered and packed once."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Cloud]":
    """An account of its own for each test, with all that a cluster needs."""
    from tests.cloud import account

    with account(monkeypatch) as cloud:
        yield cloud


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a moto server on loopback; boto3 and pyarrow find it through the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request would bury a failure
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="frames")
    yield "s3://frames"
    server.stop()


@pytest.fixture
def bucket_place(bucket: str) -> str:
    """A prefix that nobody else uses: moto's buckets outlive its servers."""
    return f"{bucket}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random model's bundle, as tests/serving.py writes it; nobody may change it."""
    from tests.serving import write_tiny_bundle

    folder = str(tmp_path_factory.mktemp("models") / "bundle")
    write_tiny_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set that a small network learns in a few epochs: labels.csv (path,label,group) and 96 pictures.

    Two classes, twelve groups of eight pictures, each group with a background of its own.
    """
    import numpy as np

    from data.images import encode_png

    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(7)
    lines = ["path,label,group"]
    for group in range(12):
        background = random.integers(40, 160, 3)
        for number in range(8):
            label = ("crab", "sponge")[number % 2]
            image = np.clip(background + random.integers(-15, 16, (40, 48, 3)), 0, 255).astype(np.uint8)
            top, left = random.integers(4, 20, 2)
            if label == "crab":
                image[top : top + 12, left : left + 20] = (220, 60, 40)
            name = f"site-{group:02d}/{number}.png"
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(encode_png(image))
            lines.append(f"{name},{label},site-{group:02d}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def config(photos: Path, cache_dir: str, tmp_path: Path) -> "SearchConfig":
    """A search of seconds, one trial at a time: what makes two of them comparable to the digit."""
    from data.collection import DataConfig
    from models.training import TrainConfig
    from tune.settings import SearchConfig

    return SearchConfig(
        data=DataConfig(data=str(photos / "labels.csv"), image_size=16, cache_dir=cache_dir),
        train=TrainConfig(epochs=4, batch_size=16, learning_rate=0.003),
        out=str(tmp_path / "run"),
        trials=3,
        max_concurrent=1,
    )


@pytest.fixture
def job(config: "SearchConfig") -> "Job":
    """One of its trials, of one epoch."""
    from dataclasses import replace

    from data.collection import load_collection
    from tune.trial import Job

    return Job(config.model, replace(config.train, epochs=1), load_collection(config.data))
