"""Changing what an endpoint serves, one PUT at a time: back to the bundle before, the end of a promotion, waiting."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from models.bundle import read_bundle
from serve.promotion.serveapi import Application, ChangedError

Result = Literal["promoted", "went back", "aborted", "nothing to do", "rolled back", "refused", "stopped"]

# What Ray calls an application whose replicas may yet all come to run.
# UNHEALTHY is what Ray says from the death of a replica until another one is in its place; it says the same where each
# new one dies at once, so whoever waits has to set an end.
_UNDER_WAY = ("RUNNING", "DEPLOYING", "UNHEALTHY")


class Serving(Protocol):
    """What is asked of `serveapi.ServeApi`."""

    def application(self, name: str = "") -> Application: ...

    def change(self, name: str, expected: Mapping[str, Any], wanted: Mapping[str, Any]) -> None: ...


class Answering(Protocol):
    """What is asked of `endpointapi.EndpointApi`."""

    @property
    def problem(self) -> str: ...

    def promotion(self, *, watching: str = "") -> dict[str, Any] | None: ...

    def model(self) -> str | None: ...


@dataclass
class Outcome:
    """What a command did, for people and as JSON."""

    result: Result
    reason: str
    model: str = ""
    """Id of the model in service now; empty where the endpoint did not say."""
    promotion: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    bundle: str = ""
    """The bundle that this command brought into service: what the endpoint must be started with from now on."""

    @property
    def done(self) -> bool:
        """Whether what was asked for has been done."""
        return self.result in ("promoted", "went back", "aborted", "nothing to do")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class EndedError(Exception):
    """It ends here, without what was asked for. The text says why."""

    def __init__(self, result: Result, reason: str) -> None:
        super().__init__(reason)
        self.result: Result = result


class LostError(EndedError):
    """Somebody else has changed the endpoint: nothing of it is ours to clean up."""

    def __init__(self, reason: str) -> None:
        super().__init__("stopped", reason)


class ModelChange:
    """One endpoint, and the changes of its `user_config`."""

    def __init__(
        self,
        serving: Serving,
        endpoint: Answering,
        *,
        app: str = "",
        patience_s: float = 300.0,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`patience_s`: how long all replicas may take until they have loaded what a change names."""
        self.endpoint, self.poll_s, self.clock, self.sleep = endpoint, poll_s, clock, sleep
        self.patience_s = patience_s
        self._serving, self._app = serving, app

    def application(self) -> Application:
        return self._serving.application(self._app)

    def put(self, app: Application, **changed: Any) -> None:
        """Change these settings. LostError if they are not as they were when `app` was read."""
        try:
            self._serving.change(app.name, app.user_config, {**app.user_config, **changed})
        except ChangedError as error:
            raise LostError(str(error)) from None

    def swap(self, app: Application, bundle: str, model: str) -> None:
        """Ask for this bundle, which holds this model; the one in service becomes the previous one."""
        now = app.user_config
        # An endpoint of `serve deploy` does not say which model its bundle held; what answers is that.
        before = str(now.get("model") or self.endpoint.model() or "")
        changed = {"bundle": bundle, "model": model, "previous": now["bundle"], "previous_model": before}
        self.put(app, **changed, candidate=None)

    def rollback(self, say: Callable[[str], None] = lambda line: None) -> Outcome:
        """Put the bundle before this one in service, in one step; while a promotion runs, end that instead.

        The settings remember one bundle before, so a second rollback undoes the first. `say` is told which model comes
        before anything is changed: who presses twice in a hurry must see it.
        """
        app = self.application()
        now, previous = app.user_config["bundle"], str(app.user_config.get("previous") or "")
        if app.user_config.get("candidate"):
            outcome = self.abort()
            if previous:
                outcome.reason += f"; a further --rollback goes back from it to {previous}"
            return outcome
        if not previous:
            return self.outcome("refused", "no bundle before this one is known: promote the one that you want")
        # UserError where it is gone or damaged: Ray ends a replica that cannot take the settings it is given.
        model = read_bundle(previous)[0].id
        expected = str(app.user_config.get("previous_model") or model)
        if model != expected:
            why = f"{previous} holds the model {model} now, but {expected} was in service from there"
            return self.outcome("refused", f"{why}: put its files back, or promote the bundle that you want")
        say(f"going back from {now} to {previous}: this is the model that the last promotion or --rollback took out")
        self.swap(app, previous, model)
        self.wait_in_service(previous, model, otherwise=app)
        outcome = self.outcome(
            "went back",
            f"model {model} ({previous}) is in service again, in the place of {now}; a further --rollback undoes this: "
            f"it returns to {now}",
        )
        outcome.bundle = previous
        return outcome

    def abort(self, promotion: str = "") -> Outcome:
        """End the promotion under way, whoever began it; the model in service stays.

        `promotion`: end this one alone. LostError where another has taken its place.
        """
        app = self.application()
        candidate = app.user_config.get("candidate")
        if not candidate:
            return self.outcome("nothing to do", "nothing is being promoted")
        if promotion and candidate["promotion"] != promotion:
            raise LostError("another promotion has taken its place")
        self.put(app, candidate=None)
        self.wait_settled()
        return self.outcome("aborted", f"the promotion is ended; {app.user_config['bundle']} stays in service")

    def still(self, seconds: float, say: Callable[[str], None]) -> Application:
        """The application as soon as no replica starts; as it is where that takes longer, or Ray has given up."""
        begin = self.clock()
        while not (app := self.application()).settled and app.status in _UNDER_WAY and self.clock() < begin + seconds:
            if self.clock() == begin:
                say(f"the endpoint is {app.status}: waiting {seconds:.0f} s at most for all its replicas to run")
            self.sleep(self.poll_s)
        return app

    def wait_settled(self) -> None:
        end = self.clock() + self.patience_s
        while not self.application().settled:
            if self.clock() > end:
                raise EndedError("stopped", "the change was made, but Ray Serve does not say that all replicas have it")
            self.sleep(self.poll_s)

    def wait_in_service(self, bundle: str, model: str, *, otherwise: Application) -> None:
        """Until the change has reached all replicas and the endpoint names this model.

        EndedError if that does not come about, once the settings that the endpoint had before (`otherwise`) are put
        back: better the wrong model than none.
        """
        end = self.clock() + self.patience_s
        said: str | None = "nothing"
        while self.clock() < end:
            app = self.application()
            if app.user_config.get("bundle") != bundle:
                raise LostError("somebody else has changed the endpoint's model meanwhile")
            if app.applied and app.status == "DEPLOY_FAILED":
                said = f"nothing ({app.message[:300]})"
                break
            if app.settled:
                said = self.endpoint.model()
                if said in (model, ""):
                    return
            self.sleep(self.poll_s)
        before = otherwise.user_config
        kept = {name: before.get(name, "") for name in ("bundle", "model", "previous", "previous_model")}
        self.put(self.application(), **kept, candidate=None)
        raise EndedError(
            "rolled back",
            f"{bundle} was asked for, but the endpoint answers with {said}, not with {model}; {before['bundle']} is "
            "asked for again",
        )

    def outcome(self, result: Result, reason: str) -> Outcome:
        return Outcome(result, reason, self.endpoint.model() or "")
