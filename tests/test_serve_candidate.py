"""A candidate in a replica: whatever it does, the model in service answers, and the trouble is counted."""

import asyncio
from typing import Any

import pytest

from data.images import Failure
from models.predictor import Prediction
from serve.endpoint import Answer
from serve.errors import ApiError
from serve.promotion.candidate import part_of
from serve.promotion.promotionroutes import PromotionAnswer
from tests.promotions import NAN, Lab, Toy, broken_bundle, lab, other_classes
from tests.serving import picture

__all__ = ["lab"]


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

    asyncio.run(work())


def test_its_share_goes_by_the_request_id(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.3, min_requests=10_000)
        await lab.settle("ready")
        first = await lab.ask_many(300)
        assert await lab.ask_many(300) == first  # sent again, each gets the model that it had
        assert 50 < first.count("new") < 130
        expected = ["new" if part_of(f"r{number}") < 0.3 else "old" for number in range(300)]
        assert first == expected

    asyncio.run(work())


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

    asyncio.run(work())


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

    asyncio.run(work())


def test_one_bad_request_of_many_does_not_end_a_promotion(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(1.0, min_requests=200, max_error_rate=0.05)
        await lab.settle("ready")
        assert await lab.ask_many(50) == ["new"] * 50
        lab.new.answer = lambda: NAN
        assert (await lab.ask("bad")).info.id == "old"
        lab.new.answer = lab.new._prediction
        assert await lab.ask_many(50) == ["new"] * 50

    asyncio.run(work())


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

    asyncio.run(work())


def test_disagreement_takes_it_out(lab: Lab) -> None:
    async def work() -> None:
        lab.new.label = "anemone"
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(10)
        assert "it gave 0 of" in (await lab.settle("dropped"))["reasons"][0]

    asyncio.run(work())


def test_a_slow_one_is_taken_out(lab: Lab) -> None:
    async def work() -> None:
        lab.new.seconds = 0.1
        await lab.configure(0.0)
        await lab.settle("ready")
        await lab.ask_many(15)
        state = await lab.settle("dropped")
        assert "times as long" in state["reasons"][0]
        assert 8 < state["ratio"] < 12

    asyncio.run(work())


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

    asyncio.run(work())


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

    asyncio.run(work())
