"""Comparing a candidate with the model in service: nobody waits for it, and it takes a share of the images."""

import asyncio
import threading
from typing import Any

import pytest

from serve.endpoint import Answer
from tests.promotions import Lab, lab
from tests.serving import picture

__all__ = ["lab"]


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

    asyncio.run(work())


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

    asyncio.run(work())


def test_a_share_may_be_left_out_of_comparing(lab: Lab) -> None:
    async def work() -> None:
        await lab.configure(0.0, shadow=0.2, min_requests=1000)
        await lab.settle("ready")
        await lab.ask_many(200)
        assert 15 < (await lab.settle("ready"))["counts"]["compared"] < 70

    asyncio.run(work())
