"""Bring a new model into service without losing a request: python serve/promote.py BUNDLE

Golden images first, before anything is touched. Then shadow traffic (the new model sees requests, the old one answers),
a share of the requests, all of them with the old model still at hand, and for good. A model that fails, disagrees or is
slow is taken out at any stage, and what it could not answer the old model has answered. `--rollback` goes back to the
model before; given twice, it returns to the one that it took out.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tyro

from data.checks import above_zero
from data.commandline import run_command
from data.errors import UserError
from serve.promotion.judge import Limits


@dataclass(frozen=True)
class PromoteConfig:
    """Which model, where, and what it must keep to."""

    bundle: tyro.conf.Positional[str] = ""
    """The new model: a bundle folder or s3:// address, as the replicas find it too."""
    limits: Limits = field(default_factory=Limits)
    rollback: bool = False
    """Go back, at once, to the model that the last promotion took out. Once is enough: a second --rollback undoes the
    first, and brings back the model that the first took out. While a promotion runs, it ends that instead."""
    abort: bool = False
    """End the promotion under way; the model in service stays."""
    port: int | None = None
    """The endpoint's port, where several run on this machine."""
    endpoint: str = ""
    """Address of an endpoint elsewhere, such as https://host:8000. Give --dashboard too."""
    dashboard: str = ""
    """Address of its Ray dashboard, such as http://127.0.0.1:8265 through a tunnel. It takes Ray's token, from
    RAY_AUTH_TOKEN or ~/.ray/auth_token."""
    app: str = ""
    """The application's name in Ray Serve, where several endpoints run in one Ray."""
    key: str = ""
    """The endpoint's key. Empty is EAGLERAY_KEY, which other users of this machine cannot see."""
    ca_file: str = ""
    """Certificates that an https:// endpoint may show. Empty trusts the usual authorities."""
    canary: float = 0.1
    """Share of the requests that the new model answers in the canary stage."""
    shadow: float = 1.0
    """Share of the requests whose images may be compared. Comparing takes a quarter of a core at most in any case."""
    stage_timeout_s: float = 600.0
    """Seconds after which a stage without enough requests to judge by ends the promotion, with nothing changed."""
    without_traffic: bool = False
    """Send golden images to the endpoint until there is enough to judge by: for an endpoint that nobody uses now."""
    cache_dir: str = ""
    """Folder for copies of bundles read from s3://. Empty is the user's cache folder."""
    json: bool = False
    """Print the result as JSON on standard output, and the steps on standard error."""

    def __post_init__(self) -> None:
        if sum((bool(self.bundle), self.rollback, self.abort)) != 1:
            raise ValueError("give either the bundle to promote, or --rollback, or --abort")
        if bool(self.endpoint) != bool(self.dashboard):
            raise ValueError("endpoint and dashboard must be given together: requests go to one, changes to the other")
        if not 0 < self.canary < 1:
            raise ValueError(f"canary must be between 0 and 1, got {self.canary}")
        if not 0 < self.shadow <= 1:
            raise ValueError(f"shadow must be above 0 and at most 1, got {self.shadow}")
        above_zero(self, "stage_timeout_s")


def main() -> int:
    return run_command(PromoteConfig, _promote, description=__doc__)


def _promote(config: PromoteConfig) -> int:
    # Imported here: the help must not wait for torch.
    from serve.client import Client
    from serve.promotion.endpointapi import EndpointApi, GoldenTraffic
    from serve.promotion.goldenstage import GoldenStage, check_bundles
    from serve.promotion.modelchange import EndedError, ModelChange, Outcome
    from serve.promotion.serveapi import ServeApi, ray_token
    from serve.promotion.stages import Plan, Promotion
    from serve.running.note import Running
    from serve.settings import pinned

    def check(bundle: str, settings: Mapping[str, Any]) -> GoldenStage:
        return check_bundles(
            bundle,
            settings["bundle"],
            config.limits,
            old_model=str(settings.get("model") or ""),
            threads=int(settings.get("threads", 0)),
            cache_dir=config.cache_dir,
        )

    url, dashboard = config.endpoint, config.dashboard
    if not url:
        running = Running.find(config.port)
        if running.state == "starting":
            raise UserError(f"the endpoint at {running.url} is still starting: wait until it answers")
        url, dashboard = running.url, running.dashboard
    key = config.key or os.environ.get("EAGLERAY_KEY", "")
    change = ModelChange(
        ServeApi(dashboard, ray_token()), EndpointApi(url, key, ca_file=config.ca_file), app=config.app
    )
    say = partial(print, file=sys.stderr if config.json else sys.stdout, flush=True)
    try:
        if config.rollback:
            outcome = change.rollback(say)
        elif config.abort:
            outcome = change.abort()
        else:
            plan = Plan(config.limits, config.canary, config.shadow, config.stage_timeout_s)
            traffic = (
                GoldenTraffic(Client(url, key, timeout_s=30, ca_file=config.ca_file or None))
                if config.without_traffic
                else None
            )
            outcome = Promotion(change, plan, check, traffic=traffic, say=say).run(pinned(config.bundle))
    except EndedError as error:
        outcome = Outcome(error.result, str(error))
    say(f"{outcome.result}: {outcome.reason}" + ("" if outcome.done else f"; in service: {outcome.model or 'unknown'}"))
    if outcome.bundle:
        say(_next_start(outcome.bundle, elsewhere=bool(config.endpoint)))
    if config.json:
        print(json.dumps(outcome.as_dict()))
    return 0 if outcome.done else 1


def _next_start(bundle: str, *, elsewhere: bool) -> str:
    """Said last: an endpoint that is started again as it was before would bring the old model back, silently."""
    path = shlex.quote(bundle)
    how = f"--bundle {path}" + (f" (bundle={path} with Ray Serve's own commands)" if elsewhere else "")
    return f"from now on start the endpoint with {how}: a new start knows nothing of this change"


if __name__ == "__main__":
    sys.exit(main())
