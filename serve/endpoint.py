"""The model behind the endpoint: loaded off the event loop, warmed up before it answers, swapped in one step.

Nothing here knows Ray or HTTP, so all of it runs in a plain test. `deployment.py` puts Ray Serve around it, and
`routes.py` HTTP.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from data.errors import UserError
from data.images import Failure, encode_png
from models.bundle import BundleInfo
from models.predictor import Prediction, Predictor
from serve.settings import EndpointConfig

# A batch that takes this long means that the network hangs: the replica then calls itself unhealthy and is replaced.
_STUCK_AFTER_S = 120.0

Answer: TypeAlias = Prediction | Failure


class Model(Protocol):
    """What the endpoint needs of `models.predictor.Predictor`."""

    @property
    def info(self) -> BundleInfo: ...

    def predict_bytes(self, blobs: Sequence[bytes | Failure]) -> list[Answer]: ...


@dataclass(frozen=True)
class Loaded:
    """A model that has answered its warm-up, with the settings it was loaded under."""

    model: Model
    config: EndpointConfig


@dataclass(frozen=True)
class Job:
    """One image, and the model that was in service when its request came in.

    A request's images may be spread over two batches; carrying the model along keeps them from being answered by two
    models when one is swapped in between.
    """

    loaded: Loaded
    blob: bytes


def load_predictor(config: EndpointConfig) -> Model:
    """Read the bundle for one replica. UserError says what is wrong with it."""
    return Predictor.load(
        config.bundle, device=config.device, threads=config.threads or None, cache_dir=config.cache_dir
    )


class Endpoint:
    """Holds the model in service and runs it in one thread of its own, never on the event loop."""

    def __init__(self, load: Callable[[EndpointConfig], Model] = load_predictor) -> None:
        self._load = load
        self._active: Loaded | None = None
        # One thread: the network already uses as many cores as the replica has, and one batch at a time keeps the
        # memory of decoded images bounded.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._busy_since: float | None = None

    @property
    def active(self) -> Loaded | None:
        """The model in service, None until the first one has warmed up."""
        return self._active

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> EndpointConfig:
        """Load what `user_config` names, try it, and only then put it in service; the one before answers until then.

        An error leaves the model in service as it was.
        """
        config = EndpointConfig.from_user_config(user_config)
        if self._active is None or self._active.config != config:
            model = await asyncio.to_thread(self._load_and_try, config)
            self._active = Loaded(model, config)
        return config

    async def answer(self, jobs: Sequence[Job]) -> list[Answer]:
        """Predict a batch, in order. Images of different models (during a swap) go through their own."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._answer, list(jobs))

    def check_health(self) -> None:
        """Raise when this replica cannot answer: no model yet, or a batch that does not end."""
        if self._active is None:
            raise RuntimeError("no model is loaded: set user_config to {'bundle': ...}")
        if self._busy_since is not None and time.monotonic() - self._busy_since > _STUCK_AFTER_S:
            raise RuntimeError(f"one batch has been running for more than {_STUCK_AFTER_S:.0f} s")

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _load_and_try(self, config: EndpointConfig) -> Model:
        model = self._load(config)
        warm_up(model, config.max_batch_size)
        return model

    def _answer(self, jobs: list[Job]) -> list[Answer]:
        self._busy_since = time.monotonic()
        try:
            answers: dict[int, Answer] = {}
            for loaded in dict.fromkeys(job.loaded for job in jobs):
                rows = [row for row, job in enumerate(jobs) if job.loaded is loaded]
                answers.update(zip(rows, loaded.model.predict_bytes([jobs[row].blob for row in rows]), strict=True))
            return [answers[row] for row in range(len(jobs))]
        finally:
            self._busy_since = None


def warm_up(model: Model, batch_size: int) -> None:
    """Predict a grey image alone and in a full batch, so that the first user waits for neither memory nor kernels.

    UserError if the answer is not a probability for each class: such a model must not come into service.
    """
    size = max(model.info.preprocess.resize.size, 32)
    grey = encode_png(np.full((size, size, 3), 128, np.uint8))
    for answer in model.predict_bytes([grey]) + model.predict_bytes([grey] * batch_size):
        if isinstance(answer, Failure):
            raise UserError(f"the bundle fails on the warm-up image ({answer.message}): train it again")
        total = math.fsum(answer.probabilities)
        if len(answer.probabilities) != len(model.info.classes) or not abs(total - 1) < 1e-3:
            raise UserError(
                f"the bundle answers the warm-up image with probabilities that sum to {total:g} over "
                f"{len(answer.probabilities)} of {len(model.info.classes)} classes: train it again"
            )
