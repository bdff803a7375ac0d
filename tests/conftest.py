"""One Ray for the whole test session, a bucket on loopback, and the real images where they lie beside the project."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.processes import prepare_environment

prepare_environment()  # before anything imports Ray

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with four logical CPUs, shared by all tests that need one: starting Ray is what costs."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        dashboard_port=0,
        include_dashboard=True,
        log_to_driver=False,
        logging_level="warning",
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
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a moto server on loopback; boto3 and pyarrow find it through the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
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
