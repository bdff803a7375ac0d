"""Which paths the door leaves open, and that no spelling of a path opens another."""

import asyncio
import json
import random
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from serve.door.access import Guarded
from serve.door.keystore import Keys
from serve.scopestate import OPEN
from tests.asgicalls import Inner, Reply, call, scope_of
from tests.doors import RIGHT, Config, ask, guarded, keys

__all__ = ["keys"]

OPEN_PATHS = ["/", "/docs", "/openapi.json", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready"]
OPEN_PATHS += ["/page/app.js", "/page/fonts/a-b_c.woff2"]


@pytest.mark.parametrize("path", OPEN_PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_open_paths_ask_for_no_key_and_look_at_none(keys: Keys, method: str, path: str) -> None:
    for headers in ([], [("authorization", "Bearer er_wrong")], [*RIGHT, *RIGHT]):
        reply = ask(guarded(keys, Config(rate_limit=0.001)), method, f"{path}?a=b", headers)
        assert (reply.status, json.loads(reply.body)) == (200, {"caller": OPEN})


@pytest.mark.parametrize("path", OPEN_PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "GETT", ""])
def test_open_paths_are_open_to_reading_only(keys: Keys, method: str, path: str) -> None:
    assert ask(guarded(keys), method, path).status == 401


CLOSED_PATHS = """
/predict // * /healthz/ //healthz /HEALTHZ /healthz%00 /healthz;x /healthz%0a /ping/x /./healthz /predict/../healthz
/v2/health /v2/health/ /v2/health/live/ /v2/health/../models/m/infer /v2/health/x /docs/oauth2-redirect /x/../healthz
/page /page/ /page//a /page/.. /page/../predict /page/%2e%2e/predict /page/a/../../predict /page/..%2fpredict
/page/a%5c..%5cb /page/.env /page/a/.git /page/a%20b /page/a%0a /page/ä /paged /healthz%2f..%2fpredict
http://host/healthz /-/healthz
"""


@pytest.mark.parametrize("path", ["", *CLOSED_PATHS.split()])
def test_whatever_is_not_exactly_open_is_closed(keys: Keys, path: str) -> None:
    inner = Inner()
    assert ask(guarded(keys, inner=inner), "GET", path).status == 401
    assert inner.scopes == []


def test_below_a_mount_point_the_same_paths_are_open(keys: Keys) -> None:
    def at(path: str, root: str) -> int:
        scope = {**scope_of("GET", path), "root_path": root}
        return asyncio.run(call(guarded(keys), "GET", path, scope=scope)).status

    assert at("/eagleray/healthz", "/eagleray") == 200
    assert at("/eagleray/predict", "/eagleray") == 401
    assert at("/eagleray", "/eagleray") == 401
    assert at("/healthz/predict", "/healthz") == 401
    assert at("/healthz", "/healthz") == 200  # the door agrees with the router, which looks at the whole path here


PIECES = "/ // predict PREDICT page healthz v2 models health live .. . %2f %2e%2e %252f %00 %5c ; ? # app.js"


def test_no_path_reaches_a_closed_route_of_a_real_application(keys: Keys, tmp_path: Path) -> None:
    """Whatever a path is made of: the router's word, not ours, on what it reaches."""
    (tmp_path / "app.js").write_text("page")
    (tmp_path.parent / "secret.js").write_text("secret")
    inner = FastAPI()
    reached: list[str] = []

    @inner.api_route("/predict", methods=["GET", "HEAD", "POST"])
    def predict() -> str:
        reached.append("predict")
        return "predicted"

    @inner.api_route("/v2/models/{name:path}", methods=["GET", "POST"])
    def model(name: str) -> str:
        reached.append(name)
        return "model"

    @inner.get("/healthz")
    def healthz() -> str:
        return "ok"

    inner.mount("/page", StaticFiles(directory=tmp_path))
    app = Guarded(inner, keys, Config)
    rng = random.Random(5)
    starts = ["/", "/", "/page/", "/page/app.js", "/healthz", "/v2/health/live"]
    pieces = [*PIECES.split(), "secret.js", "\\", " ", "%70redict", "*"]

    def target() -> str:
        return rng.choice(starts) + "".join(rng.choices(pieces, k=rng.randint(0, 6)))

    async def knock() -> list[Reply]:
        return [await call(app, rng.choice(["GET", "HEAD", "POST", "OPTIONS"]), target()) for _ in range(5000)]

    replies = asyncio.run(knock())
    assert reached == []
    assert {reply.status for reply in replies} == {200, 401, 404, 405}
    assert not any(b"secret" in reply.body or b"predicted" in reply.body for reply in replies)
    assert asyncio.run(call(app, "GET", "/page/app.js")).body == b"page"
    assert asyncio.run(call(app, "POST", "/predict", RIGHT)).status == 200
    assert reached == ["predict"]
