"""One of a cluster file's `available_node_types`: which machine, how rented, where it stands, what it may do."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NodeType:
    """One of `available_node_types`: a kind of machine that the cluster may rent."""

    name: str
    head: bool
    min_workers: int
    max_workers: int
    config: dict[str, Any]
    """Its node_config: what Ray hands to EC2's RunInstances."""
    resources: dict[str, Any]
    labels: dict[str, str]

    @property
    def instance_type(self) -> str:
        return str(self.config.get("InstanceType", ""))

    @property
    def image(self) -> str:
        return str(self.config.get("ImageId", ""))

    @property
    def spot(self) -> bool:
        return (self.config.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"

    @property
    def market(self) -> str:
        return "spot" if self.spot else "on-demand"

    @property
    def profile(self) -> str:
        """The name of its instance profile; "" where it has none."""
        given = self.config.get("IamInstanceProfile") or {}
        return str(given.get("Name") or str(given.get("Arn", "")).rpartition("/")[2])

    @property
    def subnets(self) -> tuple[str, ...]:
        return tuple(map(str, self.config.get("SubnetIds") or ()))

    @property
    def groups(self) -> tuple[str, ...]:
        """The ids of its security groups; none where Ray is to look for one by name."""
        return tuple(map(str, self.config.get("SecurityGroupIds") or ()))

    @property
    def wants_gpu(self) -> bool:
        """Workers do, unless their resources say GPU: 0; the head only where its resources ask for one."""
        return bool(self.resources.get("GPU", 0 if self.head else 1))

    @property
    def disks(self) -> tuple[dict[str, Any], ...]:
        """Block devices: DeviceName and what Ebs says of it."""
        given = self.config.get("BlockDeviceMappings") or ()
        return tuple({"DeviceName": d.get("DeviceName", ""), **(d.get("Ebs") or {})} for d in given)


def node_type(name: str, entry: dict[str, Any], head: bool, most: int) -> NodeType:
    """From an entry of the file; `most` are the workers that the whole cluster may have."""
    return NodeType(
        name=name,
        head=head,
        min_workers=0 if head else int(entry.get("min_workers", 0)),
        max_workers=0 if head else min(int(entry.get("max_workers", most)), most),
        config=entry["node_config"],
        resources=dict(entry.get("resources") or {}),
        labels=dict(entry.get("labels") or {}),
    )
