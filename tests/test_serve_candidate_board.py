"""A candidate's replicas and their board: what one saw, all obey; and what each does without a board."""

import asyncio
import dataclasses
from typing import Any

import pytest

from serve.promotion.board import Board, Report
from serve.promotion.judge import Verdict
from serve.promotion.promotionroutes import PromotionAnswer, router
from tests.promotions import HeardBoard, Lab, lab, use_clock

__all__ = ["lab"]


class Dead:
    """A board that cannot be reached."""

    async def report(self, report: Report) -> Verdict:
        raise RuntimeError("the actor died")

    async def state(self, promotion: str, share: float, *, watching: bool) -> dict[str, Any]:
        raise RuntimeError("the actor died")

    async def close(self) -> None:
        raise RuntimeError("the actor died")


def test_without_a_board_a_replica_judges_alone(tiny_bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tiny_bundle, board=Dead())
    use_clock(lab.clock, monkeypatch)

    async def work() -> None:
        await lab.configure(1.0)
        while (await lab.ask("r")).info.id != "new":
            await asyncio.sleep(0.002)
        lab.new.answer = lab.new.raises
        asked = -1
        while lab.new.asked != asked:
            asked = lab.new.asked
            assert set(await lab.ask_many(5)) == {"old"}
            await asyncio.sleep(0.02)
        await lab.configure()
        assert set(await lab.ask_many(5)) == {"old"}

    asyncio.run(work())


def test_a_lost_board_is_told_all_again(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(30)
        await lab.settle("ready")
        assert isinstance(lab.board, HeardBoard)
        lab.board._board = Board()
        state = await lab.settle("ready")
        assert state["counts"]["compared"] == 30
        assert state["decision"] == "good"

    asyncio.run(work())


def test_a_replica_that_starts_late_joins_in_or_hears_that_it_is_over(lab: Lab, tiny_bundle: str) -> None:
    async def work() -> None:
        await lab.configure(1.0)
        await lab.settle("ready")
        late = Lab(tiny_bundle, board=lab.board, replica="b", clock=lab.clock)
        await late.configure(1.0)
        assert (await late.ask("r")).info.id in ("old", "new")  # it answers at once, candidate or not
        while (await late.ask("r")).info.id != "new":
            await asyncio.sleep(0.002)
        lab.new.answer = lab.new.raises
        await lab.ask_many(5)
        while (await late.ask("r")).info.id != "old":  # what one replica saw, all obey
            await asyncio.sleep(0.002)
        later = Lab(tiny_bundle, board=lab.board, replica="c", clock=lab.clock)
        await later.configure(1.0)
        await later.settle("dropped")
        assert later.loads == ["old"]
        assert set(await later.ask_many(5)) == {"old"}

    asyncio.run(work())


def test_the_status_is_open_to_all_replicas_alike(lab: Lab) -> None:
    import httpx
    from fastapi import FastAPI

    from serve.errors import install_error_handlers

    async def work() -> None:
        app = FastAPI()
        install_error_handlers(app)
        app.include_router(router(lab.endpoint))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://endpoint") as client:
            await lab.configure()
            assert (await client.get("/promotion")).json() == {"promotion": None}
            await lab.configure(0.0)
            await lab.settle("ready")
            assert (await client.get("/promotion?watching=other")).json()["watched_s"] is None
            await client.get("/promotion?watching=p1")
            state = (await client.get("/promotion")).json()
            assert PromotionAnswer.model_validate(state).promotion == "p1"
            assert state["watched_s"] >= 0
            assert state["replicas"]["a"]["new"] == "new"
            lab.endpoint.candidates._board = Dead()
            failed = await client.get("/promotion")
            assert failed.status_code == 503
            assert failed.json()["error"]["code"] == "no_board"

    asyncio.run(work())


def test_reports_travel(lab: Lab) -> None:
    """To another process: by pickle, and without the network's libraries on the other side."""
    import pickle

    async def work() -> None:
        sent: list[Report] = []

        class KeptBoard(HeardBoard):
            async def report(self, report: Report) -> Verdict:
                sent.append(report)
                return await super().report(report)

        lab.board = lab.endpoint.candidates._board = KeptBoard()
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(3)
        await lab.settle("ready")
        copy = pickle.loads(pickle.dumps(sent[-1]))
        assert copy == sent[-1]
        assert dataclasses.asdict(copy)["counts"]["compared"] == 3

    asyncio.run(work())
