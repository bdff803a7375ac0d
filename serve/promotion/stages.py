"""The stages of a promotion: golden images, shadow traffic, a share of the requests, all of them, and for good.

Every change is one PUT of the deployment's `user_config`. Whatever kills this process leaves an endpoint that answers:
up to the last PUT every replica has the model in service loaded, and a candidate that does badly is taken out by the
replicas themselves (`board.py`).
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from data.errors import UserError
from data.images import Pixels
from serve.promotion.goldenstage import GoldenStage
from serve.promotion.judge import Limits, stage_of, waits_for
from serve.promotion.modelchange import EndedError, LostError, ModelChange, Outcome
from serve.promotion.serveapi import Application

# A command that leads a promotion asks how it goes every second; one that has not for so long is dead.
_ALIVE_S: Final = 30.0
# An endpoint that sleeps (min_replicas 0) wakes at the first question.
_WAKING_S: Final = 120.0
# Where load comes and goes, so do replicas: a change waits for a moment in which none starts.
_STILL_S: Final = 60.0

Check = Callable[[str, Mapping[str, Any]], GoldenStage]
"""The golden stage: of a bundle, beside the one that the endpoint's settings name."""
Traffic = Callable[[Sequence[Pixels], float], None]
"""Sends requests of our own, to be answered by the candidate where its share is above 0."""


@dataclass(frozen=True)
class Plan:
    """How a promotion goes."""

    limits: Limits
    canary: float = 0.1
    shadow: float = 1.0
    stage_timeout_s: float = 600.0

    @property
    def shares(self) -> tuple[float, ...]:
        return 0.0, self.canary, 1.0


class Promotion:
    """One bundle on its way into service."""

    def __init__(
        self,
        change: ModelChange,
        plan: Plan,
        check: Check,
        *,
        traffic: Traffic | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`say` gets a line for each step. `traffic` None leaves all requests to the endpoint's users."""
        self._change, self._plan, self._check, self._traffic, self._say = change, plan, check, traffic, say
        self._id = ""
        self._stages: list[dict[str, Any]] = []

    def run(self, bundle: str) -> Outcome:
        """Bring `bundle` into service, or leave the endpoint as it was and say why.

        UserError for what must be mended first (no endpoint, no key, no such bundle): nothing is touched then.
        """
        try:
            config = self._begin(bundle)
            golden = self._golden(bundle, config)
            self._id = f"{golden.new.id}-{uuid.uuid4().hex[:8]}"
            for share in self._plan.shares:
                self._stage(share, bundle, golden)
            self._for_good(bundle, golden.new.id)
        except LostError as error:
            return self._outcome(error)
        except EndedError as error:
            self._clear()
            return self._outcome(error)
        except BaseException:  # Ctrl-C, a dashboard that does not answer any more
            self._clear()
            raise
        reason = f"model {golden.new.id} is in service; --rollback goes back to {config['bundle']}"
        return Outcome("promoted", reason, golden.new.id, self._id, self._stages, bundle)

    def _begin(self, bundle: str) -> Mapping[str, Any]:
        """The settings to begin from; what a command that died left behind is cleared away."""
        state = self._first_answer()
        app = self._change.still(_STILL_S, self._say)
        config = app.user_config
        if bundle == config.get("bundle"):
            raise EndedError("refused", f"{bundle} is in service; a new model needs a folder of its own")
        if not app.settled:
            why = f"the endpoint is {app.status} {app.message}".rstrip()
            raise EndedError("refused", f"{why}: wait until all its replicas run, or mend it")
        if left := config.get("candidate"):
            self._clear_leftover(left["promotion"], state)
        return config

    def _first_answer(self) -> Mapping[str, Any]:
        """How the endpoint's promotion goes. UserError where it is not ours to ask, or does not answer."""
        endpoint = self._change.endpoint
        end = self._change.clock() + _WAKING_S
        while (state := endpoint.promotion()) is None:
            if self._change.clock() > end:
                raise UserError(f"the endpoint does not answer ({endpoint.problem}); look at its address")
            self._change.sleep(self._change.poll_s)
        return state

    def _clear_leftover(self, name: str, state: Mapping[str, Any]) -> None:
        """End a promotion that nobody leads any more; EndedError where its command may live.

        A command asks for the first time only after its first change, so a promotion of which nobody has asked yet is
        looked at until it is old enough.
        """
        while True:
            if state.get("promotion") != name:
                raise EndedError("refused", f"promotion {name} is under way, or was left behind: --abort ends it")
            watched = state.get("watched_s")
            if watched is not None and watched < _ALIVE_S:
                raise EndedError(
                    "refused",
                    f"promotion {name} is under way, led by another command {watched:.0f} s ago: wait for it, or end "
                    "it with --abort",
                )
            if watched is not None or state["age_s"] >= _ALIVE_S:
                break
            self._change.sleep(self._change.poll_s)
            state = self._first_answer()
        self._say(f"clearing away promotion {name}, whose command is gone")
        self._change.abort(name)

    def _golden(self, bundle: str, config: Mapping[str, Any]) -> GoldenStage:
        with self._told("golden") as stage:
            golden = self._check(bundle, config)
            if golden.problems:
                raise EndedError("refused", "; ".join(golden.problems))
            if self._traffic is not None and not golden.images:
                raise EndedError("refused", "--without-traffic sends golden images, and neither bundle has any")
            stage["seen"] = list(golden.seen)
        return golden

    def _stage(self, share: float, bundle: str, golden: GoldenStage) -> None:
        """Give the candidate this share of the requests, until it is known how it does."""
        with self._told(stage_of(share), self._waits(share)) as stage:
            app = self._change.application()
            if share == 0 and app.user_config.get("candidate"):
                raise LostError("another promotion began at the same time")
            if share > 0:
                self._ours(app)
            what = {"bundle": bundle, "model": golden.new.id, "promotion": self._id}
            shares = {"share": share, "shadow": self._plan.shadow}
            self._change.put(app, candidate={**what, **shares, **asdict(self._plan.limits)})
            self._wait_loaded(share, golden.new.id)
            state = self._wait_good(share, golden.images)
            stage.update(seen=state["reasons"], counts=state["counts"])

    def _waits(self, share: float) -> str:
        """Told before the wait begins: on an endpoint that nobody uses it would last until the time is up."""
        told = f"until {waits_for(self._plan.limits, share)}, for {self._plan.stage_timeout_s:.0f} s at most"
        hint = "golden images are sent meanwhile"
        if self._traffic is None:
            hint = "if nobody uses the endpoint, --without-traffic sends golden images"
        return f"{told} (--min-requests, --stage-timeout-s); {hint}"

    def _wait_loaded(self, share: float, model: str) -> None:
        """Until every replica that runs has this stage's settings, and the candidate that was checked."""
        patience = self._change.patience_s
        for app in self._looks(patience):
            state = self._state(share)
            known: Mapping[str, Any] = state["replicas"] if state else {}
            ready = {name for name, one in known.items() if one["status"] == "ready"}
            if wrong := {known[name]["new"] for name in ready} - {model}:
                raise EndedError("rolled back", f"the replicas loaded {', '.join(wrong)}, but {model} was checked")
            if app.settled and app.replicas and app.replicas <= ready:
                return
        raise EndedError("stopped", f"not every replica had loaded the new model after {patience:.0f} s")

    def _wait_good(self, share: float, images: Sequence[Pixels]) -> Mapping[str, Any]:
        """Until the judge says that this stage is passed: what was known then."""
        missing: Sequence[str] = ("nothing was heard of the replicas",)
        for _ in self._looks(self._plan.stage_timeout_s):
            state = self._state(share)
            if state is not None and state["decision"] == "good":
                return state
            if state is not None:
                missing = state["reasons"]
            if self._traffic is not None:
                self._traffic(images, share)
        raise EndedError(
            "stopped",
            f"too little was seen in {self._plan.stage_timeout_s:.0f} s ({'; '.join(missing)}): give it more time with "
            "--stage-timeout-s, ask for less with --min-requests, or let --without-traffic send golden images",
        )

    def _looks(self, seconds: float) -> Iterator[Application]:
        """The application again and again, as long as the promotion is ours and the time is not up."""
        end = self._change.clock() + seconds
        while self._change.clock() < end:
            app = self._change.application()
            self._ours(app)
            yield app
            self._change.sleep(self._change.poll_s)

    def _ours(self, app: Application) -> None:
        found = (app.user_config.get("candidate") or {}).get("promotion")
        if found != self._id:
            raise LostError("another promotion has taken its place" if found else "somebody has ended the promotion")

    def _state(self, share: float) -> Mapping[str, Any] | None:
        """What the board knows of this stage, None where nobody says so now."""
        state = self._change.endpoint.promotion(watching=self._id)
        if state is None or state.get("promotion") != self._id:
            return None
        if state["decision"] == "rollback":
            raise EndedError("rolled back", "; ".join(state["reasons"]))
        return state if state["share"] == share else None

    def _for_good(self, bundle: str, model: str) -> None:
        with self._told("full") as stage:
            app = self._change.application()
            self._ours(app)
            self._change.swap(app, bundle, model)
            self._change.wait_in_service(bundle, model, otherwise=app)
            stage["seen"] = [f"{model} answers everything"]

    def _clear(self) -> None:
        """Take the candidate away, if there is one and it is ours."""
        if not self._id:
            return
        try:
            app = self._change.application()
            if (app.user_config.get("candidate") or {}).get("promotion") == self._id:
                self._change.put(app, candidate=None)
                self._change.wait_settled()
        except (EndedError, UserError) as error:
            self._say(f"the new model could not be taken away ({error}): run --abort")

    def _outcome(self, error: EndedError) -> Outcome:
        model = self._change.endpoint.model() or ""
        return Outcome(error.result, str(error), model, self._id, self._stages)

    @contextlib.contextmanager
    def _told(self, name: str, waits: str = "") -> Iterator[dict[str, Any]]:
        """One stage: kept for the outcome, and told in a line when it begins and when it is passed."""
        stage: dict[str, Any] = {"stage": name, "passed": False, "seconds": 0.0, "seen": []}
        self._stages.append(stage)
        self._say(f"{name} ... {waits}".rstrip())
        begin = self._change.clock()
        try:
            yield stage
            stage["passed"] = True
        finally:
            stage["seconds"] = round(self._change.clock() - begin, 1)
        self._say(f"{name}: {'; '.join(stage['seen'])} ({stage['seconds']:.0f} s)")
