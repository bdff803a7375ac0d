"""What the tests of serve/protocols/ share: a model that remembers what it was shown, and its HTTP."""

import contextlib
import json
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from data.images import Pixels
from models.bundle import BundleInfo
from serve.endpoint import Answer, Endpoint, Image, Model, load_predictor
from serve.errors import install_error_handlers
from serve.protocols import openinference, sagemaker, tfserving
from serve.settings import EndpointConfig
from tests.serving import Client, plain_endpoint

INFER = "/v2/models/eagleray/infer"


class Recorder:
    """The predictor of a bundle, and what it was shown since `seen` was last cleared."""

    def __init__(self, bundle: str) -> None:
        self._model: Model = load_predictor(EndpointConfig(bundle))
        self.seen: list[Any] = []

    @property
    def info(self) -> BundleInfo:
        return self._model.info

    def predict(self, images: Sequence[Image]) -> list[Answer]:
        self.seen.extend(images)
        return self._model.predict(images)

    def rows(self, images: Sequence[Image]) -> list[list[float]]:
        """The probabilities that the endpoint should answer for these images."""
        return [list(answer.probabilities) for answer in self._model.predict(images)]  # type: ignore[union-attr]


def protocol_app(bundle: str, **settings: Any) -> tuple[Recorder, FastAPI]:
    """All protocols' routes around a recorder."""
    recorder = Recorder(bundle)
    endpoint, _ = plain_endpoint(bundle, model=recorder, **settings)
    recorder.seen.clear()  # of the warm-up
    return recorder, app_around(endpoint)


def app_around(endpoint: Endpoint) -> FastAPI:
    app = FastAPI(title="eagleray", version="1")
    install_error_handlers(app)
    for protocol in (sagemaker, tfserving, openinference):
        app.include_router(protocol.router(endpoint))
    return app


@contextlib.contextmanager
def on_loopback(app: ASGIApp) -> Iterator[str]:
    """The application behind a real socket, for clients that need one; yields its URL."""
    config = uvicorn.Config(app, port=0, lifespan="off", ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


def pixels(seed: int, size: int = 32) -> Pixels:
    """Noise (size, size, 3) over the whole range."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def floats(image: Pixels) -> npt.NDArray[np.float64]:
    """As the story's notebook scales its images."""
    return np.asarray(image / 255.0)


def close(found: Any, expected: Any) -> bool:
    """The same numbers within 1e-5, in the same shape."""
    one, other = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=1e-5))


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error in the form of /v1 and /v2, after a look at the form."""
    body = response.json()
    assert set(body) == {"error", "code"}
    assert isinstance(body["error"], str)
    assert len(body["error"]) > 10
    return response.status_code, body["code"]


def tensor(datatype: str, shape: list[int], data: Any = None, **parameters: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "input_0", "datatype": datatype, "shape": shape}
    if data is not None:
        found["data"] = data
    return {**found, "parameters": parameters} if parameters else found


def binary(client: Client, request: dict[str, Any], raw: bytes, **headers: str) -> httpx.Response:
    """A request of Triton's binary extension."""
    head = json.dumps(request).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"} | headers
    return client.post(INFER, content=head + raw, headers=headers)


def elements(*blobs: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(blob)) + blob for blob in blobs)
