"""What the tests of serve/ share: a tiny bundle, images for it, and HTTP to an endpoint without Ray."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI

from data.images import Failure, encode_png
from data.resizing import Resize
from models.bundle import write_bundle
from models.catalog import ModelConfig, build
from models.predictor import Prediction
from models.preprocess import Preprocess
from serve.endpoint import Endpoint, Model
from serve.routes import build_api
from serve.settings import EndpointConfig

CLASSES = ("anemone", "crab", "eagle ray")
SIZE = 32


def write_tiny_bundle(folder: str, *, seed: int = 0, confident: float | None = 0.4) -> str:
    """A random cnn for 32-pixel images of three classes; returns the bundle's id."""
    torch.manual_seed(seed)
    model = build(ModelConfig(model="cnn", dense_units=8), classes=len(CLASSES), image_size=SIZE)
    preprocess = Preprocess.for_model("cnn", Resize(SIZE))
    metrics = {"test": {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}}
    thresholds = {"confident": confident}
    return write_bundle(
        folder, model, classes=CLASSES, preprocess=preprocess, metrics=metrics, thresholds=thresholds
    ).id


def picture(seed: int, size: int = 40) -> bytes:
    """A PNG of noise over a random colour."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 120, (size, size, 3)) + random.integers(0, 136, 3)
    return encode_png(noise.astype(np.uint8))


def entry_of(answer: Prediction | Failure) -> dict[str, Any]:
    """What the endpoint should say for an answer of the predictor."""
    if isinstance(answer, Failure):
        return {"error": {"code": answer.code, "message": answer.message}}
    probabilities = dict(zip(CLASSES, answer.probabilities, strict=True))
    return {
        "label": answer.label,
        "probability": answer.probability,
        "probabilities": probabilities,
        "confident": answer.confident,
    }


def assert_same_entry(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal, with probabilities within 1e-5."""
    found = {key: value for key, value in found.items() if key != "file"}
    assert found.keys() == expected.keys()
    if "error" in expected:
        assert found == expected
        return
    assert found["label"] == expected["label"]
    assert found["confident"] == expected["confident"]
    assert list(found["probabilities"]) == list(expected["probabilities"])
    for name, value in expected["probabilities"].items():
        assert abs(found["probabilities"][name] - value) <= 1e-5
    assert abs(found["probability"] - expected["probability"]) <= 1e-5


def plain_endpoint(bundle: str, *, model: Model | None = None, **settings: Any) -> tuple[Endpoint, FastAPI]:
    """An endpoint and its HTTP application in this process, without Ray and without a socket."""
    endpoint = Endpoint() if model is None else Endpoint(lambda _: model)

    asyncio.run(endpoint.reconfigure(EndpointConfig(bundle, **settings).as_user_config()))
    return endpoint, build_api(endpoint)


class Client:
    """HTTP to an application in this process; what the application raises is raised here."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


def files(blobs: Sequence[bytes], field: str = "image") -> list[tuple[str, tuple[str, bytes, str]]]:
    """A multipart body's files, as httpx takes them."""
    return [(field, (f"{index}.png", blob, "image/png")) for index, blob in enumerate(blobs)]


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def write_certificate(folder: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself, and its key: the paths of two PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "endpoint")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return str(folder / "cert.pem"), str(folder / "key.pem")
