"""What the tests of the door share: two keys, settings, and a door before an application that says who came."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from serve.door.access import Guarded, Limits
from serve.door.keystore import VARIABLE, Keys
from tests.asgicalls import Headers, Inner, Reply, call
from tests.clocks import Clock

ANA, BOB = "er_ana-0123456789abcdef", "er_bob-0123456789abcdef"
RIGHT = [("authorization", f"Bearer {ANA}")]
WRONG = [("authorization", "Bearer er_wrong")]


@dataclass
class Config:
    auth: str = "keys"
    rate_limit: float = 0.0
    max_body_bytes: int = 1000
    body_timeout_s: float = 30.0


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
