"""How many requests a second each key may make, and all together where there are no keys."""

import asyncio
from pathlib import Path

from starlette.types import Scope

from serve.door.keystore import VARIABLE, Keys, create_key
from serve.scopestate import noted
from tests.asgicalls import call, scope_of
from tests.clocks import Clock
from tests.doors import ANA, BOB, RIGHT, Config, ask, guarded, keys

__all__ = ["keys"]


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
