"""The board of a promotion: sums what the replicas count, judges it, and tells them all the same verdict.

One named Ray actor, made by the first replica that has a candidate and gone when there is none. It may die at any time:
each replica reports all that it has counted so far, not what is new, so the next board knows as much within seconds.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from serve.promotion.judge import Counts, Limits, Verdict, judge, stage_of, total

Status = Literal["loading", "ready", "failed", "dropped"]
"""What a replica has of the candidate. dropped: it had one and obeyed a verdict."""

ACTOR_NAME: Final = "eagleray-board"
ACTOR_NAMESPACE: Final = "eagleray"
# Reports come every second. A replica that has been silent for so long, while loading, is dead.
_VANISHED_AFTER_S: Final = 20.0
# One may be chance (a machine that was taken away). A second one means that the candidate kills what loads it.
_VANISHED_LIMIT: Final = 2
_KEPT_PROMOTIONS: Final = 4
_IDLE_AFTER_S: Final = 600.0


@dataclass(frozen=True)
class Report:
    """What one replica knows of a promotion, all of it each time."""

    replica: str
    promotion: str
    share: float
    limits: Limits
    status: Status
    old: str
    """Id of the model in service."""
    new: str = ""
    """Id of the candidate, once it is loaded."""
    problem: str = ""
    """Why the status is failed or dropped."""
    counts: Counts = field(default_factory=Counts)


@dataclass
class _Promotion:
    """What the board knows of one: the newest report of each replica, by stage."""

    begun_at: float
    """When this board first heard of it."""
    stages: dict[float, dict[str, tuple[Report, float]]] = field(default_factory=dict)
    rolled_back: Verdict | None = None
    watched_at: float | None = None


class Board:
    """All that the replicas reported. Plain Python: `RayBoard` puts an actor around it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._promotions: dict[str, _Promotion] = {}

    def report(self, report: Report) -> Verdict:
        """Keep a replica's report; what it must do now. A rollback holds for the rest of the promotion."""
        promotion = self._of(report.promotion)
        promotion.stages.setdefault(report.share, {})[report.replica] = (report, self._clock())
        return self._verdict(promotion, report.share)

    def state(self, promotion: str, share: float, *, watching: bool = False) -> dict[str, Any]:
        """What is known, JSON-ready (`promotionroutes.PromotionAnswer`). `watching`: the command that promotes asks."""
        known = self._of(promotion)
        now = self._clock()
        watched = known.watched_at
        if watching:
            known.watched_at = now
        reports = known.stages.get(share, {})
        verdict = self._verdict(known, share)
        counts = total([report.counts for report, _ in reports.values()])
        return {
            "promotion": promotion,
            "stage": stage_of(share),
            "share": share,
            "decision": verdict.decision,
            "reasons": list(verdict.reasons),
            "watched_s": None if watched is None else now - watched,
            "age_s": now - known.begun_at,
            "counts": {name: value for name, value in vars(counts).items() if isinstance(value, int)},
            "old_seconds": counts.old_seconds.median(),
            "new_seconds": counts.new_seconds.median(),
            "ratio": counts.ratios.median(),
            "replicas": {
                name: {
                    "status": one.status,
                    "old": one.old,
                    "new": one.new,
                    "problem": one.problem,
                    "seen_s": now - at,
                }
                for name, (one, at) in reports.items()
            },
        }

    def _of(self, promotion: str) -> _Promotion:
        if promotion not in self._promotions:
            self._promotions[promotion] = _Promotion(self._clock())
            for old in list(self._promotions)[:-_KEPT_PROMOTIONS]:
                del self._promotions[old]
        return self._promotions[promotion]

    def _verdict(self, promotion: _Promotion, share: float) -> Verdict:
        if promotion.rolled_back is None:
            verdict = self._judge(promotion, share)
            if verdict.decision != "rollback":
                return verdict
            promotion.rolled_back = verdict
        return promotion.rolled_back

    def _judge(self, promotion: _Promotion, share: float) -> Verdict:
        known = list(promotion.stages.get(share, {}).values())
        reports = [report for report, _ in known]
        for report in reports:
            if report.status == "failed":
                return Verdict("rollback", (f"a replica could not load it: {report.problem}",))
            if report.status == "dropped":  # by a verdict that this board, a new one, has not seen
                return Verdict("rollback", (report.problem,))
        late = self._clock() - _VANISHED_AFTER_S
        vanished = [report for report, at in known if report.status == "loading" and at < late]
        if len(vanished) >= _VANISHED_LIMIT:
            return Verdict("rollback", (f"{len(vanished)} replicas died while they loaded it",))
        if not reports:
            return Verdict("wait", ("no replica has reported yet",))
        return judge(total([report.counts for report in reports]), reports[-1].limits, share)


class BoardClient(Protocol):
    """How a replica talks to the board. Both questions raise whatever goes wrong; nobody waits for an answer."""

    async def report(self, report: Report) -> Verdict: ...

    async def state(self, promotion: str, share: float, *, watching: bool) -> dict[str, Any]: ...

    async def close(self) -> None:
        """The promotion is over: the board may go."""


class OwnBoard:
    """A board in this process, for an endpoint of one replica without Ray."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or Board()

    async def report(self, report: Report) -> Verdict:
        return self._board.report(report)

    async def state(self, promotion: str, share: float, *, watching: bool) -> dict[str, Any]:
        return self._board.state(promotion, share, watching=watching)

    async def close(self) -> None: ...


class RayBoard:
    """The board that all replicas of this Ray share."""

    def __init__(self) -> None:
        self._actor: Any = None

    async def report(self, report: Report) -> Verdict:
        verdict: Verdict = await self._ask("report", report)
        return verdict

    async def state(self, promotion: str, share: float, *, watching: bool) -> dict[str, Any]:
        state: dict[str, Any] = await self._ask("state", promotion, share, watching=watching)
        return state

    async def close(self) -> None:
        # A replica that has not heard yet that the promotion is over makes a new one, and ends that in its turn.
        self._actor = None
        await asyncio.to_thread(_kill_board)

    async def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        from ray.exceptions import RayActorError

        for attempt in (1, 2):
            if self._actor is None:
                self._actor = await asyncio.to_thread(_open_board)  # it asks Ray's head, which may be slow
            try:
                return await getattr(self._actor, method).remote(*arguments, **named)
            except RayActorError:
                self._actor = None
                if attempt == 2:
                    raise
        raise AssertionError("not reached")


class _Actor(Board):
    """The board as an actor. Where all replicas died, nobody is left to end it: it does so itself."""

    def __init__(self, idle_s: float = _IDLE_AFTER_S) -> None:
        super().__init__()
        self._idle_s = idle_s
        self._heard = time.monotonic()
        threading.Thread(target=self._end_when_idle, daemon=True).start()

    def report(self, report: Report) -> Verdict:
        self._heard = time.monotonic()
        return super().report(report)

    def _end_when_idle(self) -> None:
        while time.monotonic() - self._heard < self._idle_s:
            time.sleep(self._idle_s / 20)
        _kill_board()


def _open_board() -> Any:
    """The actor, made if it is not there."""
    import ray

    kind: Any = ray.remote(_Actor)
    return kind.options(
        name=ACTOR_NAME, namespace=ACTOR_NAMESPACE, lifetime="detached", num_cpus=0, get_if_exists=True
    ).remote()


def _kill_board() -> None:
    import ray

    try:
        actor = ray.get_actor(ACTOR_NAME, namespace=ACTOR_NAMESPACE)
    except ValueError:
        return  # gone already
    ray.kill(actor)
