"""What the tests of promotions share: models that do as they are told, endpoints that hold them."""

import asyncio
import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import serve.promotion.candidate
import serve.promotion.compare
from data.errors import UserError
from data.images import Failure
from models.bundle import BundleInfo, read_info
from models.predictor import Image, Prediction
from serve.endpoint import Answer, Answered, Endpoint
from serve.promotion.board import Board, BoardClient, OwnBoard, Report
from serve.promotion.judge import Verdict, stage_of
from serve.promotion.serveapi import Application, ChangedError
from serve.settings import EndpointConfig
from tests.clocks import Clock
from tests.serving import CLASSES, picture

LIMITS: dict[str, Any] = {"max_error_rate": 0.01, "max_latency_ratio": 2.0, "min_agreement": 0.8, "min_requests": 20}
NAN = Failure("not_a_number", "the network gave no number")


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

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(Board(clock) if clock else Board())
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
        for _ in range(500):
            await self.reported()
            state = await self.endpoint.candidates.state()
            if state is not None and state["replicas"].get(self.replica, {}).get("status") == status:
                return state
        raise AssertionError(f"never {status}")

    async def reported(self) -> None:
        """Until this replica has told the board all that it knows now."""
        assert isinstance(self.board, HeardBoard)
        # The next report may be on its way with what was known before.
        wanted = self.board.heard[self.replica] + 2
        while self.board.heard[self.replica] < wanted:
            await asyncio.sleep(0.001)

    async def ask(self, request_id: str, images: Sequence[Image] | None = None) -> Answered:
        self.clock.now += 0.5  # so that a comparison has rested by then
        answered = await self.endpoint.predict(images or [picture(1)], request_id)
        while self.endpoint.candidates.comparing:
            await asyncio.sleep(0.0005)
        return answered

    async def ask_many(self, count: int, prefix: str = "r") -> list[str]:
        """Ids of the models that answered."""
        return [(await self.ask(f"{prefix}{number}")).info.id for number in range(count)]


class KilledError(BaseException):
    """What the promoting command meets when it is killed: nothing that it does reaches anybody any more."""


class Cluster:
    """Replicas in one process behind the two interfaces that a promotion uses, and users who ask them all the time.

    Time passes only in `sleep`; then the users send requests, and each of them gets an answer or the test fails.
    """

    def __init__(self, bundle: str, replicas: int = 2) -> None:
        self.loop = asyncio.new_event_loop()
        first = Lab(bundle, board=HeardBoard(Clock()), replica="r0")
        self.clock, self.board = first.clock, HeardBoard(first.clock)
        self.old, self.new = first.old, first.new
        self.labs = [Lab(bundle, board=self.board, replica=f"r{n}", clock=self.clock) for n in range(replicas)]
        names = {"bundle": "old", "model": "old", "previous": "", "previous_model": ""}
        self.user_config: dict[str, Any] = {**names, "auth": "off", "candidate": None}
        self.requests_a_second = 40
        self.answered: list[str] = []
        """Ids of the models that answered the users."""
        self.events: list[tuple[str, Callable[[], None]]] = []
        """What happens, once, when a promotion reaches a stage (shadow, canary, watch)."""
        self.changes: list[dict[str, Any]] = []
        self.killed = False
        self.problem = ""
        self.silent = False
        for lab in self.labs:
            lab.models = first.models
            self._run(lab.endpoint.reconfigure(self.user_config))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def application(self, name: str = "") -> Application:
        self._alive()
        names = frozenset(lab.replica for lab in self.labs)
        return Application(name or "eagleray", "RUNNING", "", dict(self.user_config), True, names, 0)

    def change(self, name: str, expected: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        self._alive()
        if expected != self.user_config:
            raise ChangedError("changed by somebody else")
        self.put(wanted)

    def put(self, wanted: Mapping[str, Any]) -> None:
        """A change by whomever."""
        self.user_config = copy.deepcopy(dict(wanted))
        self.changes.append(self.user_config)
        for lab in self.labs:
            self._run(lab.endpoint.reconfigure(self.user_config))

    def promotion(self, *, watching: str = "") -> dict[str, Any] | None:
        self._alive()
        if self.silent:
            return None
        state: dict[str, Any] | None = self._run(self.labs[0].endpoint.candidates.state(watching=watching))
        return {"promotion": None} if state is None else state

    def model(self) -> str | None:
        self._alive()
        return self.labs[0].endpoint.ready().info.id

    def sleep(self, seconds: float) -> None:
        """Users ask for so many seconds, and then what is due happens."""
        self._alive()
        self._run(self._users_ask(round(seconds * self.requests_a_second)))
        self.clock.now += seconds
        candidate = self.user_config.get("candidate")
        if candidate and self.events and self.events[0][0] == stage_of(candidate["share"]):
            self.events.pop(0)[1]()

    async def _users_ask(self, count: int) -> None:
        for number in range(count):
            lab = self.labs[number % len(self.labs)]
            answered = await lab.ask(f"user-{len(self.answered)}")
            assert all(isinstance(answer, Prediction) for answer in answered.answers)
            self.answered.append(answered.info.id)
        for lab in self.labs:
            if self.user_config.get("candidate"):
                await lab.reported()

    def kill(self) -> None:
        """The command dies here."""
        self.killed = True
        raise KilledError

    def revive(self) -> None:
        """Another command begins."""
        self.killed = False

    def _alive(self) -> None:
        if self.killed:
            raise KilledError

    def statuses(self) -> set[str]:
        """What the replicas have of the candidate."""
        state = self._run(self.labs[0].endpoint.candidates.state())
        return set() if state is None else {one["status"] for one in state["replicas"].values()}

    def close(self) -> None:
        for lab in self.labs:
            lab.endpoint.close()
        self._run(asyncio.sleep(0))
        self.loop.close()


@pytest.fixture
def cluster(tiny_bundle: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster(tiny_bundle)
    use_clock(made.clock, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def lab(tiny_bundle: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(tiny_bundle)
    use_clock(made.clock, monkeypatch)
    yield made
    made.endpoint.close()


def use_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons are timed and rest by this clock; reports come as fast as the loop turns."""
    monkeypatch.setattr(serve.promotion.compare, "time", SimpleNamespace(perf_counter=clock, monotonic=clock))
    monkeypatch.setattr(serve.promotion.candidate, "REPORT_EVERY_S", 0.002)


def broken_bundle() -> Exception:
    return UserError("new: no bundle there")


def other_classes(model: Toy) -> None:
    model.info = dataclasses.replace(model.info, classes=(*CLASSES[:2], "sponge"))
