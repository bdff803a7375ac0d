"""Which machines the cluster is, as labels and flags say."""

from ray._private import label_utils

from tests.budget_lab import START
from tune.budget import Budget, Node
from tune.nodeprices import INSTANCE_TYPE, MARKET, REGION, SINCE, ClusterNodes
from tune.prices import Kind


def cluster(labels: dict[str, str], budget: Budget | None = None) -> Node:
    rays = [{"NodeID": "n", "Alive": True, "Labels": labels}, {"NodeID": "gone", "Alive": False, "Labels": {}}]
    (node,) = ClusterNodes(budget or Budget(), rays_nodes=lambda: rays, clock=lambda: START)()
    return node


def test_nodes_say_by_labels_what_they_are() -> None:
    labels = {INSTANCE_TYPE: "g5.xlarge", REGION: "us-west-2", MARKET: "spot", SINCE: str(int(START) - 90)}
    assert cluster(labels) == Node("n", Kind("g5.xlarge", "us-west-2", "spot"), START - 90)
    rays_own = {INSTANCE_TYPE: "g5.xlarge", "ray.io/availability-region": "eu-west-1", "ray.io/market-type": "spot"}
    assert cluster(rays_own).kind == Kind("g5.xlarge", "eu-west-1", "spot")


def test_flags_say_it_for_a_machine_without_labels() -> None:
    assert cluster({}) == Node("n", None, START)
    rented = Budget(instance_type="m5.large", region="eu-west-1", market="spot")
    assert cluster({}, rented).kind == Kind("m5.large", "eu-west-1", "spot")
    assert cluster({INSTANCE_TYPE: "g5.xlarge", MARKET: "on-demand"}, rented).kind == Kind("g5.xlarge", "eu-west-1")


def test_ray_takes_these_labels() -> None:
    for key, value in {
        INSTANCE_TYPE: "g4dn.12xlarge",
        REGION: "eu-west-1",
        MARKET: "on-demand",
        SINCE: "1795000",
    }.items():
        assert label_utils.validate_label_key(key) is None
        label_utils.validate_label_value(value)
