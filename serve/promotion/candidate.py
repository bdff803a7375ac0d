"""The model on trial, inside a replica: loaded beside the model in service, given its share of the requests.

Where the candidate does not load, raises or answers no number, the model in service answers, and the trouble is
counted. (One that never ends a batch holds the replica's only thread: the health check then ends the replica.) The
endpoint holds one `Candidates` and calls it in four places: `reconfigure`, `take`, `answer`, `show`.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

from serve.errors import ApiError
from serve.promotion.board import BoardClient, OwnBoard, Report, Status
from serve.promotion.compare import Comparer, Tally, class_difference, is_number
from serve.promotion.judge import Limits, Verdict, judge
from serve.settings import CandidateConfig, EndpointConfig

if TYPE_CHECKING:
    from serve.endpoint import Answer, Image, Model

    Run = Callable[[Model, Sequence[Image]], Awaitable[list[Answer]]]

logger = logging.getLogger("eagleray.serve")

REPORT_EVERY_S: Final = 1.0
# The board may have to be started first. Until it answers, a replica judges by what it has counted itself.
_BOARD_PATIENCE_S: Final = 10.0


def part_of(request_id: str, use: str = "answer") -> float:
    """A number in [0, 1) that depends on nothing but the id: a request that is sent again gets the same model."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8, person=use.encode()).digest()
    return int.from_bytes(digest) / 2**64


@dataclass(eq=False)
class _Trial:
    """One candidate in this replica."""

    config: CandidateConfig
    settings: EndpointConfig
    """The endpoint's, as they are when the candidate is in service."""
    old: "Model"
    status: Status = "loading"
    model: "Model | None" = None
    problem: str = ""
    tally: Tally = field(default_factory=Tally)
    loading: "asyncio.Task[None] | None" = None
    life: "asyncio.Task[None] | None" = None

    def report(self, replica: str) -> Report:
        config = self.config
        return Report(
            replica=replica,
            promotion=config.promotion,
            share=config.share,
            limits=Limits(**{field.name: getattr(config, field.name) for field in fields(Limits)}),
            status=self.status,
            old=self.old.info.id,
            new=self.model.info.id if self.model else "",
            problem=self.problem,
            counts=self.tally.snapshot(),
        )


class Candidates:
    """The place for a candidate beside the model in service; most of the time it is empty.

    All methods are called on the event loop.
    """

    def __init__(
        self,
        load: Callable[[EndpointConfig], "Model"],
        how_loaded: Callable[[EndpointConfig], Hashable],
        board: BoardClient | None = None,
        replica: str = "alone",
    ) -> None:
        """`load` reads a model and warms it up, in any thread; `how_loaded` gives what settings have in common when
        one model serves them all. `board` is shared by all replicas, None where there is one alone."""
        self._load = load
        self._how_loaded = how_loaded
        self._board = board or OwnBoard()
        self._replica = replica
        self._trial: _Trial | None = None
        self._comparer = Comparer()
        self._farewells: set[asyncio.Task[None]] = set()

    def reconfigure(self, config: EndpointConfig, old: "Model") -> None:
        """Begin, change or end the trial that `config` asks for, beside the model in service. It returns at once.

        The candidate is loaded in the background: a replica that is started in the middle of a promotion answers with
        the model in service as soon as that is loaded, and no candidate, however broken, keeps it from that.
        """
        wanted, trial = config.candidate, self._trial
        if wanted is None:
            self._end()
            if trial is not None:
                self._say_farewell()
        elif trial is None or _what(trial.config) != _what(wanted):
            self._end()
            settings = replace(config, bundle=wanted.bundle, model=wanted.model, previous=config.bundle, candidate=None)
            self._trial = trial = _Trial(wanted, settings, old)
            trial.life = asyncio.create_task(self._live(trial))
        else:
            trial.old = old
            if trial.config != wanted:  # the next stage: judged by what is seen from here on
                trial.config = wanted
                trial.tally = Tally()

    async def take(self, config: EndpointConfig) -> "Model | None":
        """The candidate's model if it is the one that `config` wants in service: it is not loaded twice."""
        trial = self._trial
        if trial is None or self._how_loaded(trial.settings) != self._how_loaded(config):
            return None
        if trial.loading is not None:
            await asyncio.shield(trial.loading)
        return trial.model

    async def answer(
        self, request_id: str, images: "Sequence[Image]", run: "Run"
    ) -> "tuple[Model, list[Answer]] | None":
        """The candidate's answers where the request is its share; None where the model in service must answer.

        An ApiError (too many images wait) goes to the caller: it says nothing about the candidate.
        """
        trial = self._trial
        if trial is None or trial.model is None:
            return None
        model, tally = trial.model, trial.tally
        if part_of(request_id) >= trial.config.share:
            tally.old_answered()
            return None
        try:
            answers = await run(model, images)
        except ApiError:
            raise
        except Exception as error:
            logger.warning("the candidate failed, the model in service answers: %r", error)
            tally.new_failed(not_a_number=False)
            return None
        if len(answers) != len(images) or not is_number(answers):
            tally.new_failed(not_a_number=True)
            return None
        tally.new_answered()
        return model, answers

    def show(self, request_id: str, old: "Model", images: "Sequence[Image]") -> None:
        """A request has been answered: its images may be compared, off the way of the answers."""
        trial = self._trial
        if trial is not None and trial.model is not None and part_of(request_id, "compare") < trial.config.shadow:
            self._comparer.show(old, trial.model, images, trial.tally)

    @property
    def comparing(self) -> bool:
        """Whether both models look at images now."""
        return self._comparer.busy

    async def state(self, *, watching: str = "") -> dict[str, Any] | None:
        """What the board knows of the promotion under way, None where there is none. It raises what the board raises.

        `watching`: the promotion that the asking command leads, empty for anyone else.
        """
        trial = self._trial
        if trial is None:
            return None
        config = trial.config
        async with asyncio.timeout(_BOARD_PATIENCE_S):
            return await self._board.state(config.promotion, config.share, watching=watching == config.promotion)

    def close(self) -> None:
        """The replica ends; the promotion need not."""
        self._end()

    async def _live(self, trial: _Trial) -> None:
        """Ask the board whether there is still something to do, load, and report until the end."""
        await self._report(trial)
        if trial.status == "loading":
            trial.loading = asyncio.create_task(self._load_into(trial))
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            await self._report(trial)

    async def _load_into(self, trial: _Trial) -> None:
        try:
            model = await asyncio.to_thread(self._load, trial.settings)
            ours, theirs = trial.old.info.classes, model.info.classes
            if ours != theirs:
                raise ValueError(f"its classes are not those in service ({class_difference(theirs, ours)})")
        except Exception as error:  # a candidate may fail in any way, and none may harm the replica
            logger.warning("the candidate %s does not load: %r", trial.config.bundle, error)
            trial.status, trial.problem = "failed", str(error) or repr(error)
            return
        if trial.status == "loading":  # and not dropped meanwhile
            trial.model, trial.status = model, "ready"

    async def _report(self, trial: _Trial) -> None:
        report = trial.report(self._replica)
        try:
            # Not wait_for: in Python 3.11 it may swallow the cancellation that ends this task.
            async with asyncio.timeout(_BOARD_PATIENCE_S):
                verdict = await self._board.report(report)
        except Exception as error:
            logger.warning("the board of the promotion does not answer (%r): judging alone", error)
            verdict = judge(report.counts, report.limits, report.share)
        _obey(trial, verdict)

    def _end(self) -> None:
        trial, self._trial = self._trial, None
        if trial is not None and trial.life is not None:
            trial.life.cancel()

    def _say_farewell(self) -> None:
        async def close() -> None:
            with contextlib.suppress(Exception):  # the board ends itself when nobody reports any more
                async with asyncio.timeout(_BOARD_PATIENCE_S):
                    await self._board.close()

        farewell = asyncio.create_task(close())
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)


def _what(config: CandidateConfig) -> tuple[str, str]:
    return config.promotion, config.bundle


def _obey(trial: _Trial, verdict: Verdict) -> None:
    if verdict.decision == "rollback" and trial.status in ("loading", "ready"):
        reasons = "; ".join(verdict.reasons)
        logger.warning("the candidate is taken out: %s", reasons)
        trial.model, trial.status, trial.problem = None, "dropped", reasons
