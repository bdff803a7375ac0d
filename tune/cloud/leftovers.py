"""What is left of a cluster in AWS and costs money, found by its tags: `ray down` ends machines, not all the rest.

Ray tags machines with `ray-cluster-name`; what --create makes carries `eagleray-cluster`. Disks are found by either
tag, and by the machines that they hang on.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from data.errors import UserError
from tune.aws import Aws, tags
from tune.cloud.accesspolicies import CLUSTER_TAG, OUR_TAG
from tune.cloud.sundries import ADDRESS_USD, disk_usd, snapshot_usd
from tune.prices import Kind, PriceTable, load_prices

_ENDED: Final = ("terminated", "shutting-down")
# What is asked for by name and listed with its price; the tags' own list is asked for the rest.
_KNOWN: Final = ("instance", "volume", "elastic-ip", "security-group", "snapshot", "key-pair", "spot-instances-request")
_FREE: Final = ("security-group", "key-pair", "role", "instance-profile", "subnet", "vpc")


@dataclass(frozen=True)
class Leftover:
    """One thing. `usd_per_hour` is None where its price is not known; `bills` is whether it costs anything at all."""

    kind: str
    name: str
    state: str
    bills: bool
    usd_per_hour: float | None
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """All that is left, and where could not be looked."""

    things: tuple[Leftover, ...]
    blind: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing bills, and everything was looked at."""
        return not self.blind and not any(thing.bills for thing in self.things)


def find(cloud: Aws, cluster: str, bucket: str = "") -> Found:
    """Everything with the cluster's tag in the region, what bills first. `bucket` is kept on purpose: not listed."""
    table = load_prices()
    things: list[Leftover] = []
    blind: list[str] = []
    for ask in (_machines, _disks, _addresses, _snapshots, _free, _others):
        try:
            things += ask(cloud, cluster, table)
        except UserError as error:
            blind.append(str(error))
    kept = [thing for thing in things if not thing.name.endswith(f":s3:::{bucket}")]
    return Found(tuple(sorted(kept, key=lambda thing: (not thing.bills, thing.kind, thing.name))), tuple(blind))


def _tagged(cloud: Aws, operation: str, key: str, cluster: str, id_key: str) -> list[dict[str, Any]]:
    """What carries either tag; EC2 joins filters by and, so they are two questions."""
    found: dict[str, dict[str, Any]] = {}
    for tag in (CLUSTER_TAG, OUR_TAG):
        wanted = [{"Name": f"tag:{tag}", "Values": [cluster]}]
        listed = _listed(cloud, operation, key, wanted)
        found |= {each[id_key]: each for each in listed}
    return list(found.values())


def _listed(cloud: Aws, operation: str, key: str, filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if operation in ("describe_addresses", "describe_key_pairs"):  # they have no pages
        return list(cloud.ask("ec2", operation, Filters=filters)[key])
    return cloud.all("ec2", operation, key, Filters=filters)


def _instances(cloud: Aws, cluster: str) -> tuple[list[dict[str, Any]], set[str]]:
    """Those that have not ended, and the ids of those that have or are about to; EC2 shows them for an hour."""
    found = {
        each["InstanceId"]: each
        for tag in (CLUSTER_TAG, OUR_TAG)
        for group in _listed(cloud, "describe_instances", "Reservations", [{"Name": f"tag:{tag}", "Values": [cluster]}])
        for each in group["Instances"]
    }
    ended = {name for name, each in found.items() if each["State"]["Name"] in _ENDED}
    return [each for name, each in found.items() if name not in ended], ended


def _machines(cloud: Aws, cluster: str, table: PriceTable) -> Iterator[Leftover]:
    for each in _instances(cloud, cluster)[0]:
        name, state, kind = each["InstanceId"], each["State"]["Name"], each["InstanceType"]
        market = "spot" if each.get("InstanceLifecycle") == "spot" else "on-demand"
        runs = state in ("running", "pending")
        usd = _price(table, Kind(kind, cloud.region, market)) if runs else 0.0
        what = tags(each).get("Name", "")
        remedy = f"aws ec2 terminate-instances --region {cloud.region} --instance-ids {name}"
        # A stopped machine costs nothing itself; its disks do, and they are listed.
        yield Leftover("machine", f"{name} {kind} {market} {what}".rstrip(), state, runs, usd, remedy)


def _price(table: PriceTable, kind: Kind) -> float | None:
    try:
        return table.at(kind, time.time()).usd_per_hour
    except UserError:
        return None


def _disks(cloud: Aws, cluster: str, _table: PriceTable) -> Iterator[Leftover]:
    found = {each["VolumeId"]: each for each in _tagged(cloud, "describe_volumes", "Volumes", cluster, "VolumeId")}
    alive, ended = _instances(cloud, cluster)
    if machines := [each["InstanceId"] for each in alive]:
        wanted = [{"Name": "attachment.instance-id", "Values": machines}]
        found |= {each["VolumeId"]: each for each in _listed(cloud, "describe_volumes", "Volumes", wanted)}
    for each in found.values():
        yield _disk(cloud, each, ended)


def _disk(cloud: Aws, each: dict[str, Any], ended: set[str]) -> Leftover:
    attached: dict[str, Any] = next(iter(each.get("Attachments") or ()), {})
    on, name = attached.get("InstanceId", ""), each["VolumeId"]
    what = f"{name} {each['Size']} GB {each.get('VolumeType', '')}"
    # Right after `ray down` machines take a minute to shut down, and their disks hang on them till then.
    if on in ended and attached.get("DeleteOnTermination"):
        return Leftover("disk", what, each["State"], False, 0.0, f"goes with {on}, which is ending")
    usd = disk_usd(int(each["Size"]), each.get("VolumeType", ""), cloud.region)
    stays = not on or on in ended
    remedy = f"aws ec2 delete-volume --region {cloud.region} --volume-id {name}" if stays else f"goes with {on}"
    return Leftover("disk", what, each["State"], True, usd, remedy)


def _addresses(cloud: Aws, cluster: str, _table: PriceTable) -> Iterator[Leftover]:
    for each in _tagged(cloud, "describe_addresses", "Addresses", cluster, "AllocationId"):
        remedy = f"aws ec2 release-address --region {cloud.region} --allocation-id {each['AllocationId']}"
        state = "in use" if each.get("AssociationId") else "unused"
        yield Leftover(
            "address", f"{each['AllocationId']} {each.get('PublicIp', '')}", state, True, ADDRESS_USD, remedy
        )


def _snapshots(cloud: Aws, cluster: str, _table: PriceTable) -> Iterator[Leftover]:
    for each in _tagged(cloud, "describe_snapshots", "Snapshots", cluster, "SnapshotId"):
        usd = snapshot_usd(int(each["VolumeSize"]), cloud.region)
        remedy = f"aws ec2 delete-snapshot --region {cloud.region} --snapshot-id {each['SnapshotId']}"
        yield Leftover("snapshot", f"{each['SnapshotId']} {each['VolumeSize']} GB", each["State"], True, usd, remedy)


def _free(cloud: Aws, cluster: str, _table: PriceTable) -> Iterator[Leftover]:
    """What costs nothing, and may be kept for the next time."""
    at = f"--region {cloud.region}"
    for each in _tagged(cloud, "describe_security_groups", "SecurityGroups", cluster, "GroupId"):
        remedy = f"keep it, or aws ec2 delete-security-group {at} --group-id {each['GroupId']}"
        yield Leftover("security group", f"{each['GroupId']} {each['GroupName']}", "", False, 0.0, remedy)
    for each in _tagged(cloud, "describe_key_pairs", "KeyPairs", cluster, "KeyName"):
        remedy = f"keep it, or aws ec2 delete-key-pair {at} --key-name {each['KeyName']}"
        yield Leftover("key pair", each["KeyName"], "", False, 0.0, remedy)


def _others(cloud: Aws, cluster: str, _table: PriceTable) -> Iterator[Leftover]:
    """Endpoints, load balancers and whatever else somebody made with the cluster's tag, from the tags' own list."""
    wanted = [[{"Key": tag, "Values": [cluster]}] for tag in (OUR_TAG, CLUSTER_TAG)]
    listed = [
        each["ResourceARN"]
        for filters in wanted
        for each in cloud.all("resourcegroupstaggingapi", "get_resources", "ResourceTagMappingList", TagFilters=filters)
    ]
    for arn in dict.fromkeys(listed):
        kind = _kind(arn)
        if kind not in (*_KNOWN, *_FREE):
            remedy = "delete it where it was made, or take the tag off if it is to stay"
            yield Leftover(kind, arn, "", True, None, remedy)


def _kind(arn: str) -> str:
    """What an address (ARN) names: "instance", "endpoint", …; the service where it does not say ("s3")."""
    service, thing = arn.split(":")[2], arn.split(":", 5)[5]
    kind = thing.replace(":", "/").partition("/")[0] if "/" in thing or ":" in thing else service
    return "bucket" if service == "s3" else kind


def lines(found: Found) -> list[str]:
    """For the terminal."""
    shown = []
    for thing in found.things:
        usd = "price not known" if thing.usd_per_hour is None else f"{thing.usd_per_hour:.4f} USD/h"
        price = usd if thing.bills else "costs nothing"
        shown.append(f"{price:<18}{thing.kind:<16}{thing.name} {thing.state}".rstrip())
        shown.append(f"{'':<18}-> {thing.remedy}")
    shown += [f"could not look: {why}" for why in found.blind]
    return shown


def verdict(found: Found, cluster: str, region: str) -> str:
    """The last line."""
    if found.clean:
        return f"nothing of cluster {cluster} bills in {region}"
    billing = [thing for thing in found.things if thing.bills]
    usd = sum(thing.usd_per_hour or 0.0 for thing in billing)
    unknown = " and what has no known price" if any(thing.usd_per_hour is None for thing in billing) else ""
    unseen = f"; {len(found.blind)} question(s) unanswered" if found.blind else ""
    return f"{len(billing)} thing(s) of cluster {cluster} bill in {region}: {usd:.3f} USD an hour{unknown}{unseen}"


def as_json(found: Found) -> str:
    """The same for programs."""
    things = [thing.as_dict() for thing in found.things]
    return json.dumps({"clean": found.clean, "leftovers": things, "not_looked": list(found.blind)}, indent=1)
