"""Faults planted in an account or its file, one at a time: the pre-flight finds each, with its remedy."""

import pytest

from tests.cloud import ADDRESS, IMAGE, Cloud, Fault, Plant, look, said, spoilt
from tests.goodaccount import cloud, file, shared
from tune.cloud import quotas
from tune.cloud.clusterfile import ClusterFile

__all__ = ["cloud", "file", "shared"]


def no_spot_role(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.answers["iam:ListRoles"] = lambda _: {"Roles": []}
    return file


def expired(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.refuse("sts:GetCallerIdentity", "ExpiredToken", "The security token included in the request is expired")
    return file


def wrong_key(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.refuse("sts:GetCallerIdentity", "InvalidClientTokenId", "The security token is invalid", status=403)
    return file


def text(old: str, new: str) -> Plant:
    return lambda cloud, file: spoilt(file, old, new)


def quota(code: str, vcpus: float) -> Plant:
    def plant(cloud: Cloud, file: ClusterFile) -> ClusterFile:
        cloud.quotas[code] = vcpus
        return file

    return plant


def read_only_bucket(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.refuse("s3:PutObject", "AccessDenied", "Access Denied", status=403)
    return file


def closed_bucket(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.refuse("s3:HeadBucket", "403", "Forbidden", status=403)
    return file


def no_default_vpc(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.answers["ec2:DescribeVpcs"] = lambda _: {"Vpcs": []}
    return spoilt(file, f"SubnetIds: [{', '.join(file.head.subnets)}]", "Tags: []")


def may_not_launch(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    told = "User: arn:aws:iam::1:user/ana is not authorized to perform: iam:PassRole on resource: x"
    cloud.refuse("ec2:RunInstances", "UnauthorizedOperation", told, status=403)
    return file


def zones(letters: str) -> Plant:
    """Stand in these zones of the default VPC; moto offers g5 and g4dn in a, b and c."""

    def plant(cloud: Cloud, file: ClusterFile) -> ClusterFile:
        listed = cloud.ec2.describe_subnets()["Subnets"]
        chosen = [each["SubnetId"] for each in listed if each["AvailabilityZone"][-1] in letters]
        return spoilt(file, f"[{', '.join(file.head.subnets)}]", f"[{', '.join(chosen)}]")

    return plant


FAULTS: list[Fault] = [
    ("expired", expired, "credentials", "stop", ("session has expired", "aws sso login")),
    ("wrong-key", wrong_key, "credentials", "stop", ("does not know these credentials", "AWS_ACCESS_KEY_ID")),
    ("region", text("us-west-2", "us-wets-2"), "region", "stop", ("no region us-wets-2", "--write --region us-west-2")),
    ("disabled", text("us-west-2", "ap-east-1"), "region", "stop", ("not enabled", "enable-region")),
    ("no-gpu", text("g6.xlarge", "t3.xlarge"), "gpu", "stop", ("t3.xlarge has no GPU; g5.xlarge is the nearest",)),
    ("no-such-type", text("g6.xlarge", "g9.xlarge"), "types", "stop", ("g9.xlarge is no instance type", "mend")),
    (
        "spot-quota",
        quota(quotas.SPOT_G, 0),
        "quota",
        "stop",
        ("All G and VT Spot Instance Requests", "L-3819A6DF", "16"),
    ),
    ("small-quota", quota(quotas.SPOT_G, 8), "quota", "warning", ("room for 2 of", "--desired-value 16")),
    ("od-quota", quota(quotas.ON_DEMAND_G, 0), "quota", "warning", ("Running On-Demand G and VT", "L-DB2E81BA", "16")),
    ("head-quota", quota(quotas.ON_DEMAND_STANDARD, 2), "quota", "stop", ("L-1216C47A", "--desired-value 4")),
    ("image", text(IMAGE, "ami-99999999999999999"), "image", "stop", ("no image ami-999", "--write --image latest")),
    ("user", text("ssh_user: ubuntu", "ssh_user: ec2-user"), "image", "stop", ("ssh_user: ubuntu",)),
    (
        "key",
        text("ssh_user: ubuntu", "ssh_user: ubuntu\n    ssh_private_key: ~/none.pem"),
        "key pair",
        "stop",
        ("KeyName",),
    ),
    ("read-only", read_only_bucket, "bucket", "stop", ("cannot be used", "s3:PutObject")),
    ("closed", closed_bucket, "bucket", "stop", ("cannot be used", "no permission for s3:ListBucket")),
    ("unnamed", text("IamInstanceProfile", "Tags"), "profile", "stop", ("no IamInstanceProfile in head, g6-spot",)),
    ("spot-role", no_spot_role, "spot role", "stop", ("create-service-linked-role", "spot.amazonaws.com")),
    ("vpc", no_default_vpc, "subnets", "stop", ("no default VPC", "create-default-vpc")),
    ("ssh", text(ADDRESS, "0.0.0.0/0"), "ssh", "stop", ("the file opens SSH to the world", "--write --ssh-from")),
    ("ssh-v6", text(f"CidrIp: {ADDRESS}", "CidrIp: 0.0.0.0/1"), "ssh", "stop", ("SSH to the world",)),
    ("port", text("FromPort: 22, ToPort: 22", "FromPort: 22, ToPort: 8265"), "ssh", "stop", ("ports 22 to 8265",)),
    ("moved", text(ADDRESS, "203.0.113.8/32"), "security group", "stop", ("lets in 203.0.113.7/32", "--create")),
    ("stopped", text("cache_stopped_nodes: false", ""), "idle nodes", "stop", ("cache_stopped_nodes: false",)),
    ("no-limit", text("--ttl 12h --max-usd 30", ""), "time to live", "warning", ("--write --ttl 8h --max-usd 20",)),
    ("wrong-limit", text("--cluster eagleray", "--cluster other"), "time to live", "stop", ("would end nothing",)),
    (
        "labels",
        text("region: us-west-2, eagleray.market: spot", "region: us-east-1, eagleray.market: spot"),
        "names",
        "warning",
        ("g6-spot: region us-east-1, not us-west-2",),
    ),
    (
        "tags",
        text("Key: ray-cluster-name, Value: eagleray", "Key: ray-cluster-name, Value: other"),
        "names",
        "warning",
        ("tagged as cluster other", "Value: eagleray"),
    ),
    (
        "always-on",
        text("min_workers: 0", "min_workers: 1"),
        "idle nodes",
        "warning",
        ("keeps g6-spot", "min_workers: 0"),
    ),
    ("may-not", may_not_launch, "launch", "stop", ("no permission for iam:PassRole",)),
    ("disk", text("VolumeSize: 140", "VolumeSize: 5"), "disk", "stop", ("less than the image's",)),
]


@pytest.mark.parametrize(("plant", "check", "level", "words"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_found_with_its_remedy(
    cloud: Cloud, file: ClusterFile, plant: Plant, check: str, level: str, words: tuple[str, ...]
) -> None:
    findings = look(plant(cloud, file))
    told = said(findings, check, level)
    for word in words:
        assert word in told
