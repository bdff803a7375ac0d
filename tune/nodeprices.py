"""Which machines the running Ray consists of, as the meter needs them: from the nodes' labels, else from the flags.

A cluster's configuration says with `labels` in each node type what that type is rented as:

    labels: {eagleray.instance-type: g5.xlarge, eagleray.region: us-west-2, eagleray.market: spot}

Ray hands these to its nodes (values of at most 63 letters, digits, `-`, `_` and `.`). A node may add `eagleray.since`,
the second since 1970 at which its machine was started, since it is billed while it boots and Ray does not see it then.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import ray

from tune.budget import Budget, Node
from tune.prices import MARKETS, Kind

INSTANCE_TYPE: Final = "eagleray.instance-type"
REGION: Final = "eagleray.region"
MARKET: Final = "eagleray.market"
SINCE: Final = "eagleray.since"
# Ray's own labels for the same; its launcher on EC2 does not set them, other launchers do.
_RAYS_REGION: Final = "ray.io/availability-region"
_RAYS_MARKET: Final = "ray.io/market-type"


class ClusterNodes:
    """The nodes that are up now, when called. It remembers when it first saw each: before that Ray does not tell."""

    def __init__(
        self,
        budget: Budget,
        *,
        rays_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._budget, self._rays_nodes, self._clock = budget, rays_nodes, clock
        self._seen: dict[str, float] = {}

    def __call__(self) -> list[Node]:
        now = self._clock()
        return [self._node(node, now) for node in self._rays_nodes() if node["Alive"]]

    def _node(self, node: dict[str, Any], now: float) -> Node:
        labels: dict[str, str] = node.get("Labels") or {}
        first_seen = self._seen.setdefault(node["NodeID"], now)
        started = labels.get(SINCE, "")
        since = min(float(started), first_seen) if started.isdecimal() else first_seen
        return Node(node["NodeID"], self._kind(labels), since)

    def _kind(self, labels: dict[str, str]) -> Kind | None:
        given = self._budget
        instance_type = labels.get(INSTANCE_TYPE) or given.instance_type
        if not instance_type:
            return None
        market = labels.get(MARKET) or labels.get(_RAYS_MARKET, "").lower() or given.market
        return Kind(
            instance_type,
            labels.get(REGION) or labels.get(_RAYS_REGION) or given.region,
            market if market in MARKETS else given.market,
        )
