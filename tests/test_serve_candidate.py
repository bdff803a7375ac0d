"""A candidate in a replica: whatever it does, the model in service answers, and the trouble is counted."""

import asyncio
import dataclasses
import gc
import threading
import weakref
from collections.abc import Awaitable
from typing import Any

import pytest

from data.images import Failure
from models.predictor import Prediction
from serve.endpoint import Answer
from serve.errors import ApiError
from serve.promotion.board import Board, Report
from serve.promotion.candidate import part_of
from serve.promotion.judge import Verdict
from serve.promotion.promotionroutes import PromotionAnswer, router
from tests.promotions import NAN, HeardBoard, Lab, Toy, broken_bundle, lab, other_classes, use_clock
from tests.serving import picture

__all__ = ["lab"]


def run(work: Awaitable[Any]) -> Any:
    async def finished() -> Any:
        return await work

    return asyncio.run(finished())


def test_in_the_shadow_the_old_model_answers_and_both_are_compared(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.0)
        await lab.settle("ready")
        assert set(await lab.ask_many(30)) == {"old"}
        state = await lab.settle("ready")
        assert state["decision"] == "good"
        assert state["counts"]["compared"] == 30
        assert state["counts"]["agreed"] == 30
        assert state["counts"]["old_requests"] == 30
        assert state["ratio"] == pytest.approx(1, rel=0.1)
        assert PromotionAnswer.model_validate(state).stage == "shadow"

    run(work())


def test_its_share_goes_by_the_request_id(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.3, min_requests=10_000)
        await lab.settle("ready")
        first = await lab.ask_many(300)
        assert await lab.ask_many(300) == first  # sent again, each gets the model that it had
        assert 50 < first.count("new") < 130
        expected = ["new" if part_of(f"r{number}") < 0.3 else "old" for number in range(300)]
        assert first == expected

    run(work())


def test_parts_are_even_and_one_use_says_nothing_about_the_other() -> None:
    ids = [f"request-{number}" for number in range(4000)]
    assert 0.45 < sum(part_of(name) for name in ids) / len(ids) < 0.55
    both = sum(part_of(name) < 0.5 and part_of(name, "compare") < 0.5 for name in ids)
    assert 800 < both < 1200


def test_all_images_of_a_request_have_one_model(lab: Lab) -> None:
    async def work() -> None:
        lab.new.label = "anemone"
        await lab.configure(0.5, min_requests=10_000)
        await lab.settle("ready")
        for number in range(40):
            answered = await lab.ask(f"r{number}", [picture(1), picture(2), Failure("empty", "no bytes")])
            expected = "anemone" if answered.info.id == "new" else "crab"
            labels = [one.label for one in answered.answers if isinstance(one, Prediction)]
            assert labels == [expected, expected]
            assert answered.answers[2] == Failure("empty", "no bytes")

    run(work())


@pytest.mark.parametrize("fault", ["raises", "not_a_number"])
def test_where_it_fails_the_old_model_answers(lab: Lab, fault: str) -> None:
    async def work() -> None:
        await lab.configure(1.0)
        await lab.settle("ready")
        lab.new.answer = lab.new.raises if fault == "raises" else lambda: NAN
        for number in range(10):
            answered = await lab.ask(f"r{number}", [picture(1), picture(2)])
            assert answered.info.id == "old"
            assert [type(one) for one in answered.answers] == [Prediction, Prediction]
        state = await lab.settle("dropped")
        assert state["decision"] == "rollback"
        assert "it failed in" in state["reasons"][0]
        asked = lab.new.asked
        assert set(await lab.ask_many(20)) == {"old"}
        assert lab.new.asked == asked  # it is not asked any more

    run(work())


def test_one_bad_request_of_many_does_not_end_a_promotion(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(1.0, min_requests=200, max_error_rate=0.05)
        await lab.settle("ready")
        assert await lab.ask_many(50) == ["new"] * 50
        lab.new.answer = lambda: NAN
        assert (await lab.ask("bad")).info.id == "old"
        lab.new.answer = lab.new._prediction
        assert await lab.ask_many(50) == ["new"] * 50

    run(work())


def test_an_image_that_no_model_can_read_is_not_the_candidates_fault(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(1.0)
        await lab.settle("ready")
        for number in range(30):
            answered = await lab.ask(f"r{number}", [Failure("truncated", "cut off")])
            assert answered.info.id == "new"
        state = await lab.settle("ready")
        assert state["counts"]["errors"] == 0
        assert state["counts"]["compared"] == 0

    run(work())


def test_disagreement_takes_it_out(lab: Lab) -> None:
    async def work() -> None:
        lab.new.label = "anemone"
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(10)
        assert "it gave 0 of" in (await lab.settle("dropped"))["reasons"][0]

    run(work())


def test_a_slow_one_is_taken_out(lab: Lab) -> None:
    async def work() -> None:
        lab.new.seconds = 0.1
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(15)
        state = await lab.settle("dropped")
        assert "times as long" in state["reasons"][0]
        assert 8 < state["ratio"] < 12

    run(work())


@pytest.mark.parametrize("fault", ["missing", "other classes", "nonsense"])
def test_one_that_does_not_load_harms_nobody(lab: Lab, fault: str) -> None:
    async def work() -> None:
        if fault == "missing":
            lab.models["new"] = broken_bundle()
        elif fault == "other classes":
            other_classes(lab.new)
        else:
            lab.new.answer = lambda: NAN
        await lab.configure(1.0)
        state = await lab.settle("failed")
        assert state["decision"] == "rollback"
        assert set(await lab.ask_many(5)) == {"old"}
        lab.endpoint.check_health()

    run(work())


def test_in_service_it_is_the_model_that_was_tried(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.configure(1.0)
        assert set(await lab.ask_many(5)) == {"new"}
        await lab.configure(bundle="new")
        assert lab.loads == ["old", "new"]
        assert lab.endpoint.active is not None
        assert lab.endpoint.active.model is lab.new
        assert await lab.endpoint.candidates.state() is None
        assert set(await lab.ask_many(5)) == {"new"}

    run(work())


def test_one_that_was_taken_out_is_not_what_comes_into_service(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(1.0)
        await lab.settle("ready")
        lab.new.answer = lab.new.raises
        await lab.ask_many(5)
        await lab.settle("dropped")
        lab.new.answer = lab.new._prediction
        await lab.configure(bundle="new")
        assert lab.loads == ["old", "new", "new"]

    run(work())


def test_the_promotion_can_be_ended_at_any_time(lab: Lab) -> None:
    async def work() -> None:
        for share in (0.0, 0.5, 1.0):
            await lab.configure(share)
            await lab.configure()  # also while it loads
            await lab.configure(share)
            await lab.settle("ready")
            await lab.configure()
            assert await lab.endpoint.candidates.state() is None
            assert set(await lab.ask_many(5)) == {"old"}
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)  # nothing goes on reporting

    run(work())


def test_what_is_no_longer_needed_leaves_the_memory(lab: Lab) -> None:
    async def work() -> None:
        gone = weakref.ref(lab.new)
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(3)
        lab.new.label = "anemone"
        await lab.ask_many(20)
        await lab.settle("dropped")
        lab.models.clear()
        del lab.new
        await lab.ask("one more")
        await asyncio.sleep(0.01)
        gc.collect()
        assert gone() is None

    run(work())


def test_each_stage_is_counted_anew(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(30)
        await lab.configure(0.5)
        state = await lab.settle("ready")
        assert state["stage"] == "canary"
        assert state["counts"]["compared"] == 0
        assert state["decision"] == "wait"

    run(work())


def test_reconfiguring_anew_changes_nothing(lab: Lab) -> None:
    """Ray calls reconfigure again when a replica's rank changes."""

    async def work() -> None:
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(7)
        await lab.configure(0.0)
        await lab.ask_many(7)
        state = await lab.settle("ready")
        assert state["counts"]["compared"] == 14
        assert lab.loads == ["old", "new"]

    run(work())


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

    run(work())


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

    run(work())


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

    run(work())


def test_too_much_to_do_is_not_the_candidates_fault(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(model: Toy, images: Any) -> list[Answer]:
        raise ApiError(503, "overloaded", "too many images wait")

    async def work() -> None:
        await lab.configure(1.0)
        await lab.settle("ready")
        monkeypatch.setattr(lab.endpoint, "answer", full)
        for number in range(5):
            with pytest.raises(ApiError):
                await lab.ask(f"r{number}")
        assert (await lab.settle("ready"))["counts"]["errors"] == 0

    run(work())


def test_comparing_keeps_nobody_waiting(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that hangs while it is compared: requests go on, and no second comparison begins."""
    go_on, began = threading.Event(), threading.Event()
    predict = lab.new.predict

    def hang(images: Any) -> list[Answer]:
        began.set()
        assert go_on.wait(30)
        return predict(images)

    async def work() -> None:
        await lab.configure(0.0)
        await lab.settle("ready")
        monkeypatch.setattr(lab.new, "predict", hang)
        await lab.endpoint.predict([picture(1)], "r")
        assert await asyncio.to_thread(began.wait, 30)
        for number in range(20):
            answered = await lab.endpoint.predict([picture(1)], f"r{number}")
            assert answered.info.id == "old"
        assert [thread.name for thread in threading.enumerate()].count("compare") == 1
        go_on.set()
        while lab.endpoint.candidates.comparing:
            await asyncio.sleep(0.0005)
        assert (await lab.settle("ready"))["counts"]["compared"] == 1

    run(work())


def test_comparing_rests_and_looks_at_some_images_only(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask("many", [picture(seed) for seed in range(30)])
        assert (await lab.settle("ready"))["counts"]["compared"] == 8
        for number in range(5):  # the clock stands nearly still
            await lab.endpoint.predict([picture(1)], f"r{number}")
            while lab.endpoint.candidates.comparing:
                await asyncio.sleep(0.0005)
        assert (await lab.settle("ready"))["counts"]["compared"] == 8

    run(work())


def test_a_share_may_be_left_out_of_comparing(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.0, shadow=0.2, min_requests=1000)
        await lab.settle("ready")
        await lab.ask_many(200)
        assert 15 < (await lab.settle("ready"))["counts"]["compared"] < 70

    run(work())


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

    run(work())


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

    run(work())
