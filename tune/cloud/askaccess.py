"""Asks AWS about what a cluster may do and who may reach it: network, security groups, bucket, profiles, roles."""

import json
import uuid
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from data import store
from data.errors import UserError
from tune.aws import Aws, AwsError, tags
from tune.cloud.clusterfile import ClusterFile
from tune.cloud.facts import Bucket, Group, Profile, Subnet

Json = dict[str, Any]
_PROBE: Final = ".eagleray-preflight"


def subnets(cloud: Aws) -> tuple[Subnet, ...]:
    """All of the region that are ready, by zone."""
    listed = cloud.all("ec2", "describe_subnets", "Subnets")
    found = [
        Subnet(
            each["SubnetId"],
            each["AvailabilityZone"],
            each["VpcId"],
            bool(each.get("MapPublicIpOnLaunch")),
            bool(each.get("DefaultForAz")),
        )
        for each in listed
        if each.get("State") == "available"
    ]
    return tuple(sorted(found, key=lambda subnet: (subnet.zone, subnet.name)))


def default_vpc(cloud: Aws) -> str:
    """Its id, or "none"."""
    listed = cloud.all("ec2", "describe_vpcs", "Vpcs", Filters=[{"Name": "is-default", "Values": ["true"]}])
    return str(listed[0]["VpcId"]) if listed else "none"


def groups(cloud: Aws, file: ClusterFile) -> tuple[Group, ...]:
    """The security groups of the file's name and ids."""
    wanted = [{"Name": "group-id", "Values": sorted(file.group_ids)}] if file.group_ids else []
    wanted.append({"Name": "group-name", "Values": [file.group_name]})
    asked = [cloud.all("ec2", "describe_security_groups", "SecurityGroups", Filters=[each]) for each in wanted]
    listed = [each for found in asked for each in found]
    return tuple(
        Group(each["GroupId"], each["GroupName"], each.get("VpcId", ""), tuple(each["IpPermissions"]), tags(each))
        for each in {each["GroupId"]: each for each in listed}.values()
    )


def key_pairs(cloud: Aws) -> frozenset[str]:
    """Their names."""
    return frozenset(key["KeyName"] for key in cloud.ask("ec2", "describe_key_pairs")["KeyPairs"])


def bucket(cloud: Aws, name: str) -> Bucket:
    """Where it lies, and whether an object can be put into it and deleted again (both are tried)."""
    try:
        answer = cloud.ask("s3", "head_bucket", Bucket=name)
    except AwsError as error:
        if error.code in ("404", "NoSuchBucket"):
            return Bucket("")
        if error.code in ("403", "AccessDenied"):
            return Bucket(cloud.region, str(error))
        raise
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    probe = f"s3://{name}/{_PROBE}/{uuid.uuid4().hex}"
    try:
        store.write(probe, b"put by the pre-flight, and deleted by it")
        store.delete(probe)
    except UserError as error:
        return Bucket(_where(answer, headers), str(error))
    return Bucket(_where(answer, headers))


def _where(answer: Json, headers: Mapping[str, str]) -> str:
    return str(answer.get("BucketRegion") or headers.get("x-amz-bucket-region") or "us-east-1")


def profiles(cloud: Aws, names: list[str]) -> Mapping[str, Profile]:
    """The instance profiles that exist, each with what its role may do."""
    found = {}
    for name in names:
        try:
            said = cloud.ask("iam", "get_instance_profile", InstanceProfileName=name)["InstanceProfile"]
        except AwsError as error:
            if error.code != "NoSuchEntity":
                raise
            continue
        found[name] = _profile(cloud, said["Roles"][0]["RoleName"]) if said["Roles"] else Profile("", "")
    return found


def _profile(cloud: Aws, role: str) -> Profile:
    said = cloud.ask("iam", "get_role", RoleName=role)["Role"]
    documents = []
    for name in cloud.all("iam", "list_role_policies", "PolicyNames", RoleName=role):
        documents.append(cloud.ask("iam", "get_role_policy", RoleName=role, PolicyName=name)["PolicyDocument"])
    for each in cloud.all("iam", "list_attached_role_policies", "AttachedPolicies", RoleName=role):
        version = cloud.ask("iam", "get_policy", PolicyArn=each["PolicyArn"])["Policy"]["DefaultVersionId"]
        kept = cloud.ask("iam", "get_policy_version", PolicyArn=each["PolicyArn"], VersionId=version)
        documents.append(kept["PolicyVersion"]["Document"])
    return Profile(
        role,
        said["Arn"],
        tuple(map(document, documents)),
        document(said.get("AssumeRolePolicyDocument") or {}),
        "PermissionsBoundary" in said,
    )


def document(said: Any) -> Json:
    """A policy; boto3 has mostly decoded it already."""
    return json.loads(unquote(said)) if isinstance(said, str) else dict(said)


def spot_role(cloud: Aws) -> bool:
    """Whether the account has the role that EC2 needs to rent spot machines."""
    path = "/aws-service-role/spot.amazonaws.com/"
    return bool(cloud.all("iam", "list_roles", "Roles", PathPrefix=path))
