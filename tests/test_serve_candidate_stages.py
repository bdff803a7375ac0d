"""A candidate from stage to stage: it comes into service, or goes and leaves nothing behind."""

import asyncio
import gc
import weakref

from tests.promotions import Lab, lab

__all__ = ["lab"]


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

    asyncio.run(work())


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

    asyncio.run(work())


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

    asyncio.run(work())


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

    asyncio.run(work())


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

    asyncio.run(work())


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

    asyncio.run(work())
