"""All layers of the endpoint together, in this process: what each adds, and that none hides another."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from serve.application import build_asgi
from serve.door.access import is_open_path
from serve.door.keystore import Keys
from serve.endpoint import Endpoint
from serve.routes import build_api
from serve.settings import EndpointConfig
from serve.watching.meters import REQUESTS, MemorySink
from serve.watching.observe import Observer
from tests.serving import picture, write_tiny_bundle

KEY = "er_a-key-of-this-test-alone"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("models") / "bundle")
    write_tiny_bundle(folder)
    return folder


def application(bundle: str, sink: MemorySink | None = None, **settings: Any) -> tuple[Endpoint, ASGIApp, Observer]:
    endpoint, observer = Endpoint(), Observer(sink or MemorySink(), every_s=3600)
    asyncio.run(endpoint.reconfigure(EndpointConfig(bundle, **settings).as_user_config()))
    return endpoint, build_asgi(endpoint, observer, Keys({"EAGLERAY_KEYS": f"ana={KEY}"})), observer


def ask(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://endpoint") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def test_an_answer_names_its_request_and_its_model(bundle: str) -> None:
    endpoint, app, _ = application(bundle)
    headers = {"Authorization": f"Bearer {KEY}", "x-request-id": "mine-1"}
    answer = ask(app, "POST", "/predict", content=picture(1), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-model-id"] == answer.json()["model"] == endpoint.ready().info.id


def test_what_may_never_end_is_cut_off_with_its_answer(bundle: str) -> None:
    _, app, _ = application(bundle, max_body_mb=0.01)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield bytes(1024)

    for headers, status in (({"Authorization": f"Bearer {KEY}"}, 413), ({}, 401)):
        answer = ask(app, "POST", "/predict", content=endless(), headers=headers)
        assert (answer.status_code, answer.headers.get("connection")) == (status, "close")


def test_each_route_but_the_open_ones_asks_for_a_key(bundle: str) -> None:
    endpoint, app, _ = application(bundle)
    document = build_api(endpoint).openapi()
    seen = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            concrete = path.replace("{name}", "eagleray").replace("{version}", "1")
            answer = ask(app, method.upper(), concrete)
            closed = operation.get("security") == [{"key": []}]
            seen.add(closed)
            assert closed is not is_open_path(path), path
            assert (answer.status_code == 401) is closed, (method, path)
            assert not closed or answer.headers["www-authenticate"] == "Bearer"
    assert seen == {True, False}


def test_wrong_keys_are_counted_and_tell_nothing(bundle: str) -> None:
    sink = MemorySink()
    _, app, observer = application(bundle, sink)
    answer = ask(app, "POST", "/predict", content=picture(1), headers={"Authorization": "Bearer er_wrong"})
    assert answer.status_code == 403
    assert "x-model-id" not in answer.headers
    observer.flush()
    assert sink.numbers[(REQUESTS.name, "", "other", "403", "POST")] == 1


def test_other_origins_are_let_in_only_when_named(bundle: str) -> None:
    headers = {"Origin": "https://lab.example", "Access-Control-Request-Method": "POST"}
    asked = headers | {"Access-Control-Request-Headers": "authorization,content-type"}
    _, closed, _ = application(bundle)
    assert "access-control-allow-origin" not in ask(closed, "OPTIONS", "/predict", headers=asked).headers
    _, named, _ = application(bundle, cors="https://lab.example, https://other.example")
    preflight = ask(named, "OPTIONS", "/predict", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://lab.example"
    stranger = ask(named, "OPTIONS", "/predict", headers=asked | {"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in stranger.headers
    # To be let in by the browser is not to have a key.
    assert ask(named, "POST", "/predict", content=picture(1), headers=headers).status_code == 401


def test_origins_change_without_a_restart(bundle: str, tmp_path: Path) -> None:
    endpoint, app, _ = application(bundle)
    asked = {"Origin": "https://lab.example", "Access-Control-Request-Method": "GET"}
    assert ask(app, "OPTIONS", "/model", headers=asked).status_code == 401
    asyncio.run(endpoint.reconfigure(EndpointConfig(bundle, cors="https://lab.example").as_user_config()))
    assert ask(app, "OPTIONS", "/model", headers=asked).status_code == 200


def test_without_keys_all_are_let_in_when_the_operator_says_so(bundle: str) -> None:
    _, app, _ = application(bundle, auth="off")
    assert ask(app, "POST", "/predict", content=picture(1)).status_code == 200
