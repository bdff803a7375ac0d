"""What the tests of promotions share: models that do as they are told, endpoints that hold them, a clock."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import serve.candidate
import serve.compare
from data.errors import UserError
from data.images import Failure
from models.bundle import BundleInfo, read_info
from models.predictor import Image, Prediction
from serve.board import Board, BoardClient, OwnBoard, Report
from serve.endpoint import Answer, Answered, Endpoint
from serve.judge import Verdict
from serve.settings import EndpointConfig
from tests.serving import CLASSES, picture

LIMITS = {"max_error_rate": 0.01, "max_latency_ratio": 2.0, "min_agreement": 0.8, "min_requests": 20}
NAN = Failure("not_a_number", "the network gave no number")


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Toy:
    """A model that labels every image alike, takes its time by the clock, and breaks when it is told to."""

    def __init__(
        self, name: str, info: BundleInfo, clock: Clock, *, label: str = "crab", seconds: float = 0.01
    ) -> None:
        self.info = dataclasses.replace(info, id=name)
        self.label, self.seconds, self._clock = label, seconds, clock
        self.answer: Callable[[], Answer] = self._prediction
        self.asked = 0

    def predict(self, images: Sequence[Image]) -> list[Answer]:
        self.asked += len(images)
        self._clock.now += self.seconds * len(images)
        return [image if isinstance(image, Failure) else self.answer() for image in images]

    def _prediction(self) -> Prediction:
        others = 0.1 / (len(self.info.classes) - 1)
        probabilities = tuple(0.9 if name == self.label else others for name in self.info.classes)
        return Prediction(self.label, 0.9, probabilities, None)

    def raises(self) -> Answer:
        raise RuntimeError("a bug in the network")


class HeardBoard(OwnBoard):
    """A board that counts how often each replica has reported."""

    def __init__(self) -> None:
        super().__init__(Board())
        self.heard: Counter[str] = Counter()

    async def report(self, report: Report) -> Verdict:
        verdict = await super().report(report)
        self.heard[report.replica] += 1
        return verdict


class Lab:
    """An endpoint of one replica, and the models that its bundles name."""

    def __init__(
        self, bundle: str, *, board: BoardClient | None = None, replica: str = "a", clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        info = read_info(bundle)
        self.old = Toy("old", info, self.clock)
        self.new = Toy("new", info, self.clock)
        self.models: dict[str, Toy | Exception] = {"old": self.old, "new": self.new}
        self.loads: list[str] = []
        self.board = board or HeardBoard()
        self.replica = replica
        self.endpoint = Endpoint(self._load, board=self.board, replica=replica)

    def _load(self, config: EndpointConfig) -> Toy:
        self.loads.append(config.bundle)
        model = self.models[config.bundle]
        if isinstance(model, Exception):
            raise model
        return model

    async def configure(self, share: float | None = None, *, bundle: str = "old", **changed: Any) -> None:
        """A share makes the new model a candidate."""
        candidate = None if share is None else {"bundle": "new", "promotion": "p1", "share": share, **LIMITS, **changed}
        await self.endpoint.reconfigure({"bundle": bundle, "auth": "off", "candidate": candidate})

    async def settle(self, status: str) -> dict[str, Any]:
        """The board's state once this replica has reported that, and all that it has counted by now."""
        assert isinstance(self.board, HeardBoard)
        before = self.board.heard[self.replica]
        for _ in range(5000):
            state = await self.endpoint.candidates.state()
            # The next report may have been on its way when we began.
            fresh = self.board.heard[self.replica] >= before + 2
            if state is not None and fresh and state["replicas"].get(self.replica, {}).get("status") == status:
                return state
            await asyncio.sleep(0.002)
        raise AssertionError(f"never {status}")

    async def ask(self, request_id: str, images: Sequence[Image] | None = None) -> Answered:
        self.clock.now += 1  # so that a comparison has rested by then
        answered = await self.endpoint.predict(images or [picture(1)], request_id)
        while self.endpoint.candidates.comparing:
            await asyncio.sleep(0.0005)
        return answered

    async def ask_many(self, count: int, prefix: str = "r") -> list[str]:
        """Ids of the models that answered."""
        return [(await self.ask(f"{prefix}{number}")).info.id for number in range(count)]


@pytest.fixture
def lab(tiny_bundle: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(tiny_bundle)
    use_clock(made.clock, monkeypatch)
    yield made
    made.endpoint.close()


def use_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons are timed and rest by this clock; reports come as fast as the loop turns."""
    monkeypatch.setattr(serve.compare, "time", SimpleNamespace(perf_counter=clock, monotonic=clock))
    monkeypatch.setattr(serve.candidate, "REPORT_EVERY_S", 0.002)


def broken_bundle() -> Exception:
    return UserError("new: no bundle there")


def other_classes(model: Toy) -> None:
    model.info = dataclasses.replace(model.info, classes=(*CLASSES[:2], "sponge"))
