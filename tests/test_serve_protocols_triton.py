"""Triton's own client against the Open Inference Protocol, where it is installed."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.protocols import Recorder, close, on_loopback, pixels, protocol_app
from tests.serving import CLASSES, picture


@pytest.fixture(scope="module")
def triton(tiny_bundle: str) -> Iterator[Any]:
    """Triton's client, aimed at ours."""
    http = pytest.importorskip("tritonclient.http")
    _, app = protocol_app(tiny_bundle)
    with on_loopback(app) as url:
        client = http.InferenceServerClient(url.removeprefix("http://"))
        yield client
        client.close()


def triton_input(datatype: str, array: Any, *, binary_data: bool = True) -> Any:
    http = pytest.importorskip("tritonclient.http")
    return http.InferInput("image", list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary_data)


def test_triton_asks_about_the_model(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("eagleray")
    assert triton.is_model_ready("eagleray", "1")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["name"] == "eagleray"
    assert triton.get_model_metadata("eagleray")["outputs"][0]["shape"] == [-1, 3]


@pytest.mark.parametrize("binary_data", [True, False])
@pytest.mark.parametrize("datatype", ["UINT8", "FP32", "BYTES"])
def test_triton_infers(triton: Any, tiny_bundle: str, datatype: str, binary_data: bool) -> None:
    array: Any = np.stack([pixels(1), pixels(2)])
    images: list[Any] = [pixels(1), pixels(2)]
    if datatype == "FP32":
        array = (array / 255).astype(np.float32)
    if datatype == "BYTES":
        images = [picture(1), picture(2)]
        array = np.array([one if binary_data else base64.b64encode(one) for one in images], dtype=object)
    found = triton.infer("eagleray", [triton_input(datatype, array, binary_data=binary_data)], request_id="7")
    rows = Recorder(tiny_bundle).rows(images)
    assert found.get_response()["id"] == "7"
    assert close(found.as_numpy("probabilities"), rows)
    assert found.as_numpy("label").tolist() == [CLASSES[int(np.argmax(row))].encode() for row in rows]


def test_triton_asks_for_one_output_in_json(triton: Any) -> None:
    http = pytest.importorskip("tritonclient.http")
    wanted = [http.InferRequestedOutput("label", binary_data=False)]
    found = triton.infer("eagleray", [triton_input("UINT8", pixels(1))], outputs=wanted)
    assert found.as_numpy("label").shape == (1,)
    assert found.as_numpy("probabilities") is None


def test_triton_shows_what_is_wrong(triton: Any) -> None:
    problem_of = pytest.importorskip("tritonclient.utils").InferenceServerException
    with pytest.raises(problem_of, match="divide by 255"):
        triton.infer("eagleray", [triton_input("FP32", pixels(1).astype(np.float32))])
    with pytest.raises(problem_of, match="this endpoint serves 'eagleray'"):
        triton.infer("other", [triton_input("UINT8", pixels(1))])
    with pytest.raises(problem_of, match="Content-Encoding"):
        triton.infer("eagleray", [triton_input("UINT8", pixels(1))], request_compression_algorithm="gzip")
