"""Ray Serve as it comes: the predictor in a deployment, every setting at its default."""

import asyncio
import logging
import time
from typing import Any

import ray
import ray.serve
from ray.serve.config import HTTPOptions
from sharedmodel import answer, load, port
from starlette.requests import Request


@ray.serve.deployment
class Plain:
    def __init__(self) -> None:
        self._predictor = load()

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.body()
        answers = await asyncio.to_thread(self._predictor.predict, [body])
        return answer(self._predictor, answers)


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)
    ray.serve.start(http_options=HTTPOptions(port=port()))
    ray.serve.run(Plain.bind(), route_prefix="/predict")
    while True:
        time.sleep(1)
