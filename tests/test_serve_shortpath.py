"""The short path of POST /predict answers as the long one does."""

from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from serve import predictroutes
from serve.routes import build_api
from serve.shortpath import ShortPath
from tests.serving import Client, files, picture, plain_endpoint

REQUESTS: dict[str, dict[str, Any]] = {
    "an image": {"content": picture(1)},
    "a form": {"files": files([picture(1), b"no image", picture(2)])},
    "no body": {"content": b""},
    "compressed": {"content": picture(1), "headers": {"content-encoding": "gzip"}},
    "a broken form": {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
    "another multipart": {"content": b"x", "headers": {"content-type": "multipart/mixed; boundary=x"}},
    "too large": {"content": bytes(2 * 2**20)},
}


def told(answer: httpx.Response) -> tuple[int, Any, str]:
    return answer.status_code, answer.json(), answer.headers["content-type"]


@pytest.mark.parametrize("options", REQUESTS.values(), ids=REQUESTS)
def test_both_paths_answer_alike(tiny_bundle: str, options: dict[str, Any]) -> None:
    endpoint, api = plain_endpoint(tiny_bundle, max_body_mb=1)
    short: Any = ShortPath(build_api(endpoint), predictroutes.predict_route(endpoint))
    assert told(Client(short).post("/predict", **options)) == told(Client(api).post("/predict", **options))


def test_other_requests_take_the_long_path(tiny_bundle: str) -> None:
    endpoint, api = plain_endpoint(tiny_bundle)
    short: Any = ShortPath(api, predictroutes.predict_route(endpoint))
    assert Client(short).get("/predict").status_code == 405
    assert Client(short).post("/predict/", content=picture(1)).status_code in (307, 404)
    assert Client(short).get("/healthz").status_code == 200


def test_the_short_path_is_taken(tiny_bundle: str) -> None:
    endpoint, _ = plain_endpoint(tiny_bundle)

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the long path")

    short: Any = ShortPath(never, predictroutes.predict_route(endpoint))
    assert Client(short).post("/predict", content=picture(1)).status_code == 200
