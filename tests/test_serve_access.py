"""The door before every route: who gets in, who is told what, and what a hostile client can do to it."""

import asyncio
import gc
import json
import logging
import random
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.types import Message, Scope

from serve.door.access import Guarded, Limits
from serve.door.keystore import VARIABLE, Keys, create_key
from serve.protocols.errorforms import error_body
from serve.scopestate import OPEN, noted
from tests.asgicalls import Headers, Inner, Reply, call, scope_of

ANA, BOB = "er_ana-0123456789abcdef", "er_bob-0123456789abcdef"
RIGHT = [("authorization", f"Bearer {ANA}")]
OPEN_PATHS = ["/", "/docs", "/openapi.json", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready"]
OPEN_PATHS += ["/page/app.js", "/page/fonts/a-b_c.woff2"]


@dataclass
class Config:
    auth: str = "keys"
    rate_limit: float = 0.0
    max_body_bytes: int = 1000
    body_timeout_s: float = 5.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Sleeper:
    """Sleeps that last until the test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.wake = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.wake.wait()


@pytest.fixture
def keys() -> Keys:
    return Keys({VARIABLE: f"ana={ANA},bob={BOB}"})


def guarded(
    keys: Keys,
    config: Limits | None = None,
    *,
    inner: Inner | None = None,
    clock: Clock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Guarded:
    return Guarded(inner or Inner(), keys, lambda: config or Config(), clock=clock or Clock(), sleep=sleep)


def ask(app: Guarded, method: str, target: str, headers: Headers = (), *, body: bytes = b"") -> Reply:
    return asyncio.run(call(app, method, target, headers, body=body))


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", f"Bearer {ANA}")],
        [("authorization", f"bearer {ANA}")],
        [("authorization", f"BEARER   {ANA}  ")],
        [("x-api-key", ANA)],
        [("x-api-key", f" {ANA} ")],
        [("accept", "*/*"), ("X-API-Key", ANA)],
    ],
)
def test_a_right_key_gets_in_by_either_header(keys: Keys, headers: Headers) -> None:
    inner = Inner()
    reply = ask(guarded(keys, inner=inner), "POST", "/predict", headers, body=b"image")
    assert (reply.status, json.loads(reply.body)) == (200, {"caller": "ana"})
    assert inner.bodies == [b"image"]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", f"Basic {ANA}")],
        [("authorization", ANA)],
        [("authorization", f"Bearer{ANA}")],
        [("authorization", f"Bearer\t{ANA}")],
        [("authorization", b"\xff\xfe")],
        [("x-api-key", "  ")],
        [("cookie", f"authorization=Bearer {ANA}")],
        [("x-authorization", f"Bearer {ANA}")],
    ],
)
def test_without_a_key_it_is_401(keys: Keys, headers: Headers) -> None:
    inner = Inner()
    reply = ask(guarded(keys, inner=inner), "POST", f"/predict?key={ANA}&x-api-key={ANA}", headers)
    assert (reply.status, reply.code) == (401, "no_key")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert inner.scopes == []


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer er_wrong")],
        [("authorization", f"Bearer {ANA[:-1]}")],
        [("authorization", f"Bearer {ANA}x")],
        [("authorization", f"Bearer {ANA.upper()}")],
        [("authorization", f"Bearer {ANA} {BOB}")],
        [("authorization", f"Bearer {ANA},")],
        [("authorization", f"Bearer Bearer {ANA}")],
        [("authorization", f"Bearer {'x' * 60_000}")],
        [("authorization", b"Bearer \xc3\xa9\xff\x00")],
        [("x-api-key", f"Bearer {ANA}")],
        [("x-api-key", b"\xff" * 300)],
    ],
)
def test_a_wrong_key_is_403(keys: Keys, headers: Headers) -> None:
    inner = Inner()
    reply = ask(guarded(keys, inner=inner), "POST", "/predict", headers)
    assert (reply.status, reply.code) == (403, "wrong_key")
    assert "www-authenticate" not in reply.headers
    assert inner.scopes == []


@pytest.mark.parametrize(
    "headers",
    [
        [*RIGHT, *RIGHT],
        [*RIGHT, ("authorization", "Bearer er_wrong")],
        [*RIGHT, ("x-api-key", ANA)],
        [("x-api-key", ANA), ("x-api-key", "")],
    ],
)
def test_several_keys_are_refused(keys: Keys, headers: Headers) -> None:
    reply = ask(guarded(keys), "POST", "/predict", headers)
    assert (reply.status, reply.code) == (400, "many_keys")


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


def test_without_settings_all_is_closed_and_off_is_off(keys: Keys) -> None:
    closed = Guarded(Inner(), keys, lambda: None)
    assert ask(closed, "POST", "/predict").status == 401
    assert ask(closed, "GET", "/healthz").status == 200
    assert ask(closed, "POST", "/predict", RIGHT).status == 200
    config = Config(auth="off")
    app = guarded(keys, config)
    assert json.loads(ask(app, "POST", "/predict").body) == {"caller": OPEN}
    assert json.loads(ask(app, "POST", "/predict", [("x-api-key", "wrong")]).body) == {"caller": OPEN}
    config.auth = "keys"  # as a user_config does it, without a restart
    assert ask(app, "POST", "/predict").status == 401
    config.auth = "nonsense"
    assert ask(app, "POST", "/predict").status == 401


def test_an_endpoint_without_keys_lets_nobody_in() -> None:
    app = guarded(Keys({}))
    assert ask(app, "POST", "/predict", [("authorization", "Bearer ")]).status == 401
    assert ask(app, "POST", "/predict", [("authorization", "Bearer x")]).status == 403


def test_other_kinds_of_connection(keys: Keys) -> None:
    inner, sent = Inner(), list[Message]()
    app = guarded(keys, inner=inner)

    async def nothing() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app({**scope_of("GET", "/healthz", RIGHT), "type": "websocket"}, nothing, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    with pytest.raises(ValueError, match="unknown kind"):
        asyncio.run(app({**scope_of("GET", "/healthz", RIGHT), "type": "webtransport"}, nothing, send))
    assert inner.scopes == []
    asyncio.run(app({"type": "lifespan"}, nothing, send))
    assert [scope["type"] for scope in inner.scopes] == ["lifespan"]


def test_a_removed_key_is_refused_at_the_door(tmp_path: Path) -> None:
    clock = Clock()
    keys = Keys({}, clock=clock)
    new = create_key(str(tmp_path / "keys.json"), "ana")
    keys.follow(new.path)
    app = guarded(keys)
    header = [("authorization", f"Bearer {new.key}")]
    assert ask(app, "POST", "/predict", header).status == 200
    Path(new.path).write_text('{"version": 1, "keys": []}')
    clock.now += 3
    assert ask(app, "POST", "/predict", header).status == 403


def test_the_rate_is_limited_for_each_key(keys: Keys) -> None:
    clock, config = Clock(), Config(rate_limit=2)
    app = guarded(keys, config, clock=clock)

    def statuses(count: int, key: str = ANA) -> list[int]:
        return [ask(app, "POST", "/predict", [("x-api-key", key)]).status for _ in range(count)]

    assert statuses(6) == [200] * 4 + [429] * 2
    assert statuses(5, BOB) == [200] * 4 + [429]
    reply = ask(app, "POST", "/predict", RIGHT)
    assert (reply.code, reply.headers["retry-after"]) == ("rate_limited", "1")
    clock.now += 0.5
    assert statuses(2) == [200, 429]
    clock.now += 1000
    assert statuses(5) == [200] * 4 + [429]
    assert ask(app, "POST", "/predict", [("x-api-key", "wrong")]).status == 403
    assert ask(app, "GET", "/healthz", RIGHT).status == 200
    config.rate_limit = 0.1
    clock.now += 10
    assert statuses(1) == [200]
    assert ask(app, "POST", "/predict", RIGHT).headers["retry-after"] == "10"
    config.rate_limit = 0
    assert statuses(20) == [200] * 20


def test_a_key_may_have_a_rate_of_its_own(tmp_path: Path) -> None:
    new = create_key(str(tmp_path / "keys.json"), "ana", rate=1)
    app = guarded(Keys.open(new.path, {VARIABLE: f"bob={BOB}"}), Config(rate_limit=0))
    ana = [ask(app, "POST", "/predict", [("x-api-key", new.key)]).status for _ in range(3)]
    bob = [ask(app, "POST", "/predict", [("x-api-key", BOB)]).status for _ in range(3)]
    assert (ana, bob) == ([200, 200, 429], [200, 200, 200])


def test_without_keys_the_rate_holds_for_all_together(keys: Keys) -> None:
    app = guarded(keys, Config(auth="off", rate_limit=1))
    assert [ask(app, "POST", "/predict").status for _ in range(3)] == [200, 200, 429]


def test_the_scope_tells_who_was_limited_and_not_who_was_unknown(keys: Keys) -> None:
    app = guarded(keys, Config(rate_limit=0.5))
    scopes: list[Scope] = [scope_of("POST", "/predict", RIGHT) for _ in range(2)]
    assert [asyncio.run(call(app, "POST", "", scope=scope)).status for scope in scopes] == [200, 429]
    assert [noted(scope, "key") for scope in scopes] == ["ana", "ana"]
    stranger = scope_of("POST", "/predict", [("x-api-key", "wrong")])
    asyncio.run(call(app, "POST", "", scope=stranger))
    assert noted(stranger, "key") == ""


WRONG = [("authorization", "Bearer er_wrong")]


async def settled(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


def test_a_thousand_wrong_keys_are_slowed_and_right_ones_are_not(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        app = guarded(keys, sleep=sleeper)
        calls = [asyncio.ensure_future(call(app, "POST", "/predict", WRONG)) for _ in range(1000)]
        await settled(lambda: sum(one.done() for one in calls) == 992)
        replies = [one.result() for one in calls if one.done()]
        assert [reply.status for reply in replies[:10]] == [403] * 10
        assert {(reply.status, reply.code) for reply in replies[10:]} == {(429, "too_many_wrong_keys")}
        assert {reply.headers["retry-after"] for reply in replies[10:]} == {"1"}
        assert sleeper.asked == [1.0] * 8  # as few as leave a replica's places to the right keys
        for _ in range(100):
            assert (await call(app, "POST", "/predict", RIGHT)).status == 200
        assert sleeper.asked == [1.0] * 8
        sleeper.wake.set()
        late = await asyncio.gather(*(one for one in calls if not one.done()))
        assert {(reply.status, reply.code) for reply in late} == {(403, "wrong_key")}

    with caplog.at_level(logging.DEBUG, logger="eagleray"):
        asyncio.run(scenario())
    assert len(caplog.records) == 1
    assert "wrong keys" in caplog.text
    assert "er_wrong" not in caplog.text


def test_after_ten_quiet_seconds_a_wrong_key_is_answered_at_once_again(keys: Keys) -> None:
    async def scenario() -> None:
        clock, sleeper = Clock(), Sleeper()
        sleeper.wake.set()
        app = guarded(keys, clock=clock, sleep=sleeper)
        for _ in range(12):
            assert (await call(app, "POST", "/predict", WRONG)).status == 403
        assert len(sleeper.asked) == 2
        clock.now += 10.1
        for _ in range(10):
            assert (await call(app, "POST", "/predict", WRONG)).status == 403
        assert len(sleeper.asked) == 2

    asyncio.run(scenario())


def test_requests_without_a_key_do_not_count_as_wrong_ones(keys: Keys) -> None:
    async def scenario() -> None:
        app = guarded(keys, sleep=Sleeper())  # who sleeps here would sleep for ever
        for _ in range(100):
            assert (await call(app, "POST", "/predict")).status == 401
        assert (await call(app, "POST", "/predict", WRONG)).status == 403

    asyncio.run(scenario())


def test_clients_that_leave_while_they_wait_leave_their_places(keys: Keys) -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        app = guarded(keys, sleep=sleeper)
        for _ in range(10):
            await call(app, "POST", "/predict", WRONG)
        for round_ in range(1, 4):
            calls = [asyncio.ensure_future(call(app, "POST", "/predict", WRONG)) for _ in range(8)]
            await settled(lambda asked=8 * round_: len(sleeper.asked) == asked)  # type: ignore[misc]
            for one in calls:
                one.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_what_is_sent_during_a_pause_is_thrown_away(keys: Keys) -> None:
    async def scenario() -> None:
        sleeper, taken = Sleeper(), 0

        async def flood() -> Message:
            nonlocal taken
            taken += 1
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b"x" * 65536, "more_body": True}

        app = guarded(keys, sleep=sleeper)
        for _ in range(10):
            await call(app, "POST", "/predict", WRONG)
        one = asyncio.ensure_future(call(app, "POST", "/predict", WRONG, receive=flood))
        await settled(lambda: taken > 500)
        sleeper.wake.set()
        assert (await one).status == 403
        before = taken
        await asyncio.sleep(0.01)
        assert taken == before

    asyncio.run(scenario())


def test_a_client_that_is_gone_during_its_pause_harms_nobody(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        app = guarded(keys, sleep=lambda _: asyncio.sleep(0.001))

        async def gone() -> Message:
            return {"type": "http.disconnect"}

        async def broken() -> Message:
            raise ConnectionError("the server's own trouble")

        for receive in [gone, broken] * 10:
            assert (await call(app, "POST", "/predict", WRONG, receive=receive)).status == 403

    asyncio.run(scenario())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_refused_request_is_answered_before_its_body(keys: Keys) -> None:
    async def scenario() -> None:
        async def never() -> Message:
            raise AssertionError("the body was asked for")

        app = guarded(keys, Config(rate_limit=0.5))
        assert (await call(app, "POST", "/predict", receive=never)).status == 401
        assert (await call(app, "POST", "/predict", WRONG, receive=never)).status == 403
        assert (await call(app, "POST", "/predict", RIGHT)).status == 200
        assert (await call(app, "POST", "/predict", RIGHT, receive=never)).status == 429

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/predict", "/v1/models/m:predict", "/v2/models/m/infer", "/invocations"])
def test_a_refusal_has_the_form_of_its_path(keys: Keys, path: str) -> None:
    reply = ask(guarded(keys), "POST", path)
    body = json.loads(reply.body)
    assert body == error_body(path, "no_key", reply.message)
    assert isinstance(body["error"], str) == path.startswith(("/v1", "/v2"))


def test_no_answer_and_no_log_tells_a_key(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    sent = [ANA, "er_wrong-but-mine"]
    signature = f"AWS4-HMAC-SHA256 Credential=ana/20250101/r/sagemaker/aws4_request, {sent[1]}"
    tried: list[Headers] = [
        [("authorization", f"Basic {sent[1]}")],
        [("authorization", f"Bearer {sent[1]}")],
        [("authorization", signature)],
        [("x-api-key", sent[1])],
        [("x-api-key", ANA), ("authorization", f"Bearer {sent[1]}")],
    ]

    async def nobody(_: float) -> None:
        return None

    with caplog.at_level(logging.DEBUG):
        app = guarded(keys, Config(rate_limit=0.1), sleep=nobody)
        replies = [ask(app, "POST", "/predict", headers) for headers in [*(tried * 5), RIGHT, RIGHT]]
    shown = caplog.text + "".join(reply.body.decode() + str(reply.headers) for reply in replies)
    assert "er_" not in shown


def test_keys_may_change_in_another_thread_under_load(keys: Keys, tmp_path: Path) -> None:
    paths = [create_key(str(tmp_path / f"{name}.json"), name).path for name in ("one", "two")]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for path in paths:
                keys.follow(path)

    worker = threading.Thread(target=change)
    worker.start()
    try:
        app = guarded(keys)

        async def load() -> set[int]:
            return {(await call(app, "POST", "/predict", RIGHT)).status for _ in range(2000)}

        assert asyncio.run(load()) == {200}
    finally:
        stop.set()
        worker.join()
