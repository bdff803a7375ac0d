"""What the tests of whole promotions share: one over the cluster, and a change by hand."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.images import Pixels
from serve.promotion.goldenstage import GoldenStage
from serve.promotion.judge import Limits
from serve.promotion.modelchange import ModelChange, Outcome
from serve.promotion.stages import Plan, Promotion
from tests.promotions import LIMITS, Cluster

STAGES = ("shadow", "canary", "watch")


def change(cluster: Cluster, patience_s: float = 600) -> ModelChange:
    return ModelChange(cluster, cluster, patience_s=patience_s, clock=cluster.clock, sleep=cluster.sleep)


def promote(
    cluster: Cluster,
    bundle: str = "new",
    *,
    golden: GoldenStage | None = None,
    traffic: Callable[[Sequence[Pixels], float], None] | None = None,
    said: list[str] | None = None,
    min_requests: int = 20,
    patience_s: float = 600,
    **plan: Any,
) -> Outcome:
    """With a golden stage that finds nothing: the bundles are toys."""

    def check(bundle: str, user_config: Mapping[str, Any]) -> GoldenStage:
        return golden or GoldenStage(cluster.new.info, ("looks good",), (), ())

    lines = [] if said is None else said
    limits = dataclasses.replace(Limits(**LIMITS), min_requests=min_requests)
    whole = Plan(limits, **{"canary": 0.3, "stage_timeout_s": 600, **plan})
    return Promotion(change(cluster, patience_s), whole, check, traffic=traffic, say=lines.append).run(bundle)


def previous(name: str) -> dict[str, Any]:
    """A toy's bundle is named like its model."""
    return {"previous": name, "previous_model": name, "candidate": None}
