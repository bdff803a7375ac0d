"""Asks AWS about machines: types, zones, images, quotas, what runs already, and what an hour costs."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from data.errors import UserError
from tune.aws import HOME, Aws, AwsError, tags
from tune.cloud.accesspolicies import CLUSTER_TAG, partition
from tune.cloud.clusterfile import ClusterFile
from tune.cloud.facts import Cost, Group, Image, Machine, Quota, Running
from tune.prices import Kind, load_prices

Json = dict[str, Any]


def machines(cloud: Aws, file: ClusterFile) -> Mapping[str, Machine]:
    """The file's types that exist; all types with a GPU too, where a worker lacks one."""
    found = _described(cloud, sorted({kind.instance_type for kind in file.types}))
    rented = [found.get(kind.instance_type) for kind in file.workers if kind.wants_gpu]
    if any(machine is None or not machine.has_gpu for machine in rented):
        found = {**_described(cloud, ["g*", "p*"]), **found}
    return found


def _described(cloud: Aws, names: list[str]) -> dict[str, Machine]:
    wanted = [{"Name": "instance-type", "Values": names}]
    listed = cloud.all("ec2", "describe_instance_types", "InstanceTypes", Filters=wanted)
    return {each["InstanceType"]: _machine(each) for each in listed}


def _machine(said: Json) -> Machine:
    gpu: Json = next(iter(said.get("GpuInfo", {}).get("Gpus", ())), {})
    return Machine(
        name=said["InstanceType"],
        vcpus=int(said["VCpuInfo"]["DefaultVCpus"]),
        memory_mib=int(said["MemoryInfo"]["SizeInMiB"]),
        architectures=tuple(said.get("ProcessorInfo", {}).get("SupportedArchitectures", ())),
        gpu=f"{gpu.get('Manufacturer', '')} {gpu.get('Name', '')}".strip(),
        gpus=int(gpu.get("Count", 0)),
        gpu_mib=int(gpu.get("MemoryInfo", {}).get("SizeInMiB", 0)),
        spot="spot" in said.get("SupportedUsageClasses", ("spot",)),
    )


def offers(cloud: Aws, names: list[str]) -> Mapping[str, frozenset[str]]:
    """Instance type -> zones where it can be rented."""
    listed = cloud.all(
        "ec2",
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": names}],
    )
    zones: dict[str, set[str]] = {name: set() for name in names}
    for each in listed:
        zones[each["InstanceType"]].add(each["Location"])
    return {name: frozenset(found) for name, found in zones.items()}


def images(cloud: Aws, names: list[str]) -> Mapping[str, Image]:
    """Those that exist and may be used."""
    if not names:
        return {}
    # A filter rather than ImageIds: one that is missing would make an error of all. A pinned image may grow old.
    wanted = [{"Name": "image-id", "Values": names}]
    listed = cloud.ask("ec2", "describe_images", Filters=wanted, IncludeDeprecated=True)["Images"]
    return {each["ImageId"]: _image(each) for each in listed}


def _image(said: Json) -> Image:
    root = said.get("RootDeviceName", "")
    disks = [d for d in said.get("BlockDeviceMappings", ()) if d.get("DeviceName") == root]
    return Image(
        name=said.get("Name", ""),
        owner=said.get("ImageOwnerAlias") or said.get("OwnerId", ""),
        state=said.get("State", "available"),
        architecture=said.get("Architecture", ""),
        root=root,
        disk_gib=int(disks[0].get("Ebs", {}).get("VolumeSize", 0)) if disks else 0,
        deprecated=_day(said.get("DeprecationTime", "")),
    )


def _day(text: str) -> str:
    """The day, if it has come."""
    return text[:10] if text and text[:10] <= datetime.now(UTC).strftime("%Y-%m-%d") else ""


def dry_run(cloud: Aws, file: ClusterFile, groups: tuple[Group, ...]) -> str:
    """Ask EC2 to pretend to launch the head as Ray would; "", or why this login may not."""
    config = {key: value for key, value in file.head.config.items() if key not in ("SubnetIds", "SecurityGroupIds")}
    named = list(file.head.groups) or [group.id for group in groups if group.name == file.group_name]
    given = list(config.pop("TagSpecifications", ()))
    mine = {"ResourceType": "instance", "Tags": [{"Key": CLUSTER_TAG, "Value": file.name}]}
    where: Json = {"SubnetId": file.head.subnets[0], "SecurityGroupIds": named[:1], "TagSpecifications": [mine, *given]}
    try:
        cloud.ask("ec2", "run_instances", **config, **where, MinCount=1, MaxCount=1, DryRun=True)
    except AwsError as error:
        return "" if error.code == "DryRunOperation" else str(error)
    return ""


def quota(cloud: Aws, code: str) -> Quota:
    """The account's own value; where it was never changed, AWS's default."""
    try:
        said = cloud.ask("service-quotas", "get_service_quota", ServiceCode="ec2", QuotaCode=code)["Quota"]
    except AwsError as error:
        if error.code != "NoSuchResourceException":
            raise
        said = cloud.ask("service-quotas", "get_aws_default_service_quota", ServiceCode="ec2", QuotaCode=code)["Quota"]
    return Quota(said.get("QuotaName", ""), float(said["Value"]))


def running(cloud: Aws) -> tuple[Running, ...]:
    """All machines of the account in the region that count against its quotas: by their type's vCPUs, whatever options
    they run with."""
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    groups = cloud.all("ec2", "describe_instances", "Reservations", Filters=states)
    found = [each for group in groups for each in group["Instances"]]
    types = _described(cloud, sorted({each["InstanceType"] for each in found})) if found else {}
    return tuple(
        Running(
            each["InstanceType"],
            each.get("InstanceLifecycle") == "spot",
            types[each["InstanceType"]].vcpus if each["InstanceType"] in types else 0,
            tags(each).get(CLUSTER_TAG, ""),
        )
        for each in found
    )


def spot_prices(cloud: Aws, names: list[str]) -> Mapping[tuple[str, str], float]:
    """(type, zone) -> USD an hour at this moment, Linux."""
    if not names:
        return {}
    listed = cloud.all(
        "ec2",
        "describe_spot_price_history",
        "SpotPriceHistory",
        InstanceTypes=names,
        ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.now(UTC),
    )
    newest = sorted(listed, key=lambda each: each["Timestamp"])
    return {(each["InstanceType"], each["AvailabilityZone"]): float(each["SpotPrice"]) for each in newest}


def on_demand(cloud: Aws, name: str) -> Cost:
    """What AWS's price list says; else the dated table of this package."""
    try:
        return Cost(_listed_price(cloud, name), "AWS's price list")
    except UserError:
        price = load_prices().at(Kind(name, cloud.region), time.time())
        return Cost(price.usd_per_hour, f"the table of {price.date}")


def _listed_price(cloud: Aws, name: str) -> float:
    fields = {
        "instanceType": name,
        "regionCode": cloud.region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "capacitystatus": "Used",
        "preInstalledSw": "NA",
    }
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()]
    home = HOME[partition(cloud.region)]
    rows = cloud.ask("pricing", "get_products", region=home, ServiceCode="AmazonEC2", Filters=filters)["PriceList"]
    usd = [
        float(dimension["pricePerUnit"].get("USD", 0))
        for row in rows
        for term in json.loads(row)["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
    ]
    if not any(usd):
        raise UserError(f"AWS lists no price of {name} in {cloud.region}")
    return max(usd)
