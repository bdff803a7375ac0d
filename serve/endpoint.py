"""The model behind the endpoint: loaded off the event loop, warmed up before it answers, swapped in one step.

Nothing here knows Ray or HTTP (beyond the status of an error), so all of it runs in a plain test. `deployment.py` puts
Ray Serve around it, and `routes.py` HTTP.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np

from data.errors import UserError
from data.images import Failure, encode_png
from models.bundle import BundleInfo
from models.predictor import Image as Image
from models.predictor import Prediction, Predictor
from models.processes import give_back_large_blocks
from serve.batching import Batcher, FullError
from serve.errors import ApiError
from serve.onecore import OneCore
from serve.promotion.board import BoardClient
from serve.promotion.candidate import Candidates
from serve.settings import EndpointConfig

# A batch that takes this long means that the network hangs: the replica then calls itself unhealthy and is replaced.
_STUCK_AFTER_S = 120.0

# Images that may wait for the network in a replica: half a minute's work for a ResNet18 on one core. The number of
# requests is limited elsewhere, and so are their bytes; this is for many requests with many images each.
_MOST_WAITING = 1024

Answer: TypeAlias = Prediction | Failure


class Model(Protocol):
    """What the endpoint needs of `models.predictor.Predictor`."""

    @property
    def info(self) -> BundleInfo: ...

    def predict(self, images: Sequence[Image]) -> list[Answer]: ...


class Watcher(Protocol):
    """What the endpoint tells of its work; `serve/watching/` makes metrics of it. Called on the event loop."""

    def batch(self, size: int, seconds: float) -> None:
        """One run of the network is over."""

    def waiting(self, images: int) -> None:
        """So many images wait for the network now."""

    def predicted(self, info: BundleInfo, answers: Sequence[Answer]) -> None:
        """A request has its answers."""


class Unwatched:
    """A watcher that looks away."""

    def batch(self, size: int, seconds: float) -> None: ...

    def waiting(self, images: int) -> None: ...

    def predicted(self, info: BundleInfo, answers: Sequence[Answer]) -> None: ...


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that has answered its warm-up, with the settings that it serves under."""

    model: Model
    config: EndpointConfig

    @property
    def info(self) -> BundleInfo:
        return self.model.info


@dataclass(frozen=True)
class Answered:
    """The answers to one request's images, in order, all of one model."""

    info: BundleInfo
    answers: list[Answer]


def load_predictor(config: EndpointConfig) -> Model:
    """Read the bundle for one replica. UserError says what is wrong with it."""
    predictor = Predictor.load(
        config.bundle, device=config.device, threads=config.threads or None, cache_dir=config.cache_dir
    )
    if config.device != "cpu" or predictor.engine != "torch":
        give_back_large_blocks()
    return predictor


class Endpoint:
    """Holds the model in service and runs it in one thread of its own, never on the event loop.

    One thread: the network already uses as many cores as the replica has, and one batch at a time keeps the memory of
    decoded images bounded.
    """

    def __init__(
        self,
        load: Callable[[EndpointConfig], Model] = load_predictor,
        watcher: Watcher | None = None,
        board: BoardClient | None = None,
        replica: str = "alone",
    ) -> None:
        """`board` and `replica` (its name): for promotions where there is more than one replica."""
        self._load = load
        self._watcher: Watcher = watcher or Unwatched()
        self._active: Loaded | None = None
        self._cores = OneCore()
        # Not a method of this: the batcher's thread would keep all models of an endpoint that nobody closed.
        run = partial(_run, self._cores)
        self._batcher: Batcher[Model, Image, Answer] = Batcher(run, size=1, limit=1, watcher=self._watcher)
        self.candidates = Candidates(self._load_and_try, _how_loaded, board, replica)

    @property
    def active(self) -> Loaded | None:
        """The model in service, None until the first one has warmed up."""
        return self._active

    def ready(self) -> Loaded:
        """The model in service; ApiError 503 while there is none."""
        if self._active is None:
            raise ApiError(503, "not_ready", "the model is still loading: try again in a few seconds")
        return self._active

    async def predict(self, images: Sequence[Image], request_id: str) -> Answered:
        """Answer one request. All its images are answered by one model, also when the model is swapped meanwhile.

        `request_id` decides which model that is during a promotion, so that a request that is sent again gets the
        same one. ApiError 503 when no model is ready or too many images wait.
        """
        in_service = self.ready().model
        tried = await self.candidates.answer(request_id, images, self.answer)
        model, answers = tried or (in_service, await self.answer(in_service, images))
        self._watcher.predicted(model.info, answers)
        self.candidates.show(request_id, in_service, images)
        return Answered(model.info, answers)

    async def answer(self, model: Model, images: Sequence[Image]) -> list[Answer]:
        """Run images through this model, in order, in the company of other requests'. ApiError 503 if too many wait."""
        try:
            return await self._batcher.submit(model, images)
        except FullError as error:
            message = f"{error}, as many as this endpoint takes: try again in a moment"
            raise ApiError(503, "overloaded", message, {"retry-after": "1"}) from None

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> EndpointConfig:
        """Load what `user_config` names, try it, and only then put it in service; the one before answers until then.

        Settings that do not concern the model change without loading it again. An error leaves all as it was.
        """
        config = EndpointConfig.from_user_config(user_config)
        self._cores.set_loop_thread()
        before = self._active
        same = before is not None and _how_loaded(before.config) == _how_loaded(config)
        model = before.model if before is not None and same else await self.candidates.take(config)
        if model is None or config.model not in ("", model.info.id):
            model = await asyncio.to_thread(self._load_and_try, config)
        if before is None or before.config != config:
            self._active = Loaded(model, config)
        # While a candidate is on trial, two networks answer and a third thread compares them.
        alone = config.candidate is None
        self._cores.on = config.one_core and alone and config.device == "cpu" and config.threads == 1
        self._batcher.size = config.max_batch_size
        self._batcher.limit = max(_MOST_WAITING, 2 * config.max_files)
        self.candidates.reconfigure(config, model)
        return config

    def check_health(self) -> None:
        """Raise when this replica cannot answer: no model yet, or a batch that does not end."""
        if self._active is None:
            raise RuntimeError("no model is loaded: set user_config to {'bundle': ...}")
        since = self._batcher.busy_since
        if since is not None and time.monotonic() - since > _STUCK_AFTER_S:
            raise RuntimeError(f"one batch has been running for more than {_STUCK_AFTER_S:.0f} s")

    def close(self) -> None:
        self.candidates.close()
        self._batcher.close()
        self._cores.on = False
        self._cores.unpin()

    def _load_and_try(self, config: EndpointConfig) -> Model:
        model = self._load(config)
        if config.model not in ("", model.info.id):
            raise UserError(
                f"{config.bundle} holds the model {model.info.id} now, not {config.model}, which was chosen from it: "
                "put its files back, or copy the new ones to a folder of their own and promote that one "
                "(serve/promote.py)"
            )
        warm_up(model, config.max_batch_size)
        return model


def _run(cores: OneCore, model: Model, images: Sequence[Image]) -> list[Answer]:
    begin = time.thread_time()
    answers = model.predict(images)
    cores.note_batch(len(images), time.thread_time() - begin)
    return answers


def _how_loaded(config: EndpointConfig) -> tuple[Any, ...]:
    """The settings that make another model of a bundle, or need another warm-up."""
    return config.bundle, config.device, config.threads, config.cache_dir, config.max_batch_size


def warm_up(model: Model, batch_size: int) -> None:
    """Predict a grey image alone and in a full batch, so that the first user waits for neither memory nor kernels.

    UserError if the answer is not a probability for each class: such a model must not come into service.
    """
    size = max(model.info.preprocess.resize.size, 32)
    grey = encode_png(np.full((size, size, 3), 128, np.uint8))
    for answer in model.predict([grey]) + model.predict([grey] * batch_size):
        if isinstance(answer, Failure):
            raise UserError(f"the bundle fails on the warm-up image ({answer.message}): train it again")
        total = math.fsum(answer.probabilities)
        if len(answer.probabilities) != len(model.info.classes) or not abs(total - 1) < 1e-3:
            raise UserError(
                f"the bundle answers the warm-up image with probabilities that sum to {total:g} over "
                f"{len(answer.probabilities)} of {len(model.info.classes)} classes: train it again"
            )
