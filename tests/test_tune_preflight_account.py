"""Faults in the account itself, each planted in an account of its own."""

import json
from typing import Any

import pytest

from tests.cloud import IMAGE, Cloud, Fault, Plant, look, ready, said, spoilt
from tune.cloud.clusterfile import ClusterFile

ALL_OF_S3 = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


def no_bucket(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.client("s3").delete_bucket(Bucket=cloud.bucket)
    return file


def no_profile(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    name = file.workers[0].profile
    cloud.iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
    cloud.iam.delete_instance_profile(InstanceProfileName=name)
    return file


def profile_without_role(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    name = file.workers[0].profile
    cloud.iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
    return file


def all_of_s3(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    named = {"RoleName": file.workers[0].profile, "PolicyName": "more"}
    cloud.iam.put_role_policy(**named, PolicyDocument=json.dumps(ALL_OF_S3))
    return file


def managed_s3(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    made = cloud.iam.create_policy(PolicyName="S3FullAccess", PolicyDocument=json.dumps(ALL_OF_S3))["Policy"]
    cloud.iam.attach_role_policy(RoleName=file.workers[0].profile, PolicyArn=made["Arn"])
    return file


def no_pass_role(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    named = {"RoleName": file.head.profile, "PolicyName": "eagleray"}
    policy = cloud.iam.get_role_policy(**named)["PolicyDocument"]
    policy["Statement"] = [each for each in policy["Statement"] if each["Action"] != "iam:PassRole"]
    cloud.iam.put_role_policy(**named, PolicyDocument=json.dumps(policy))
    return file


def no_policy(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.iam.delete_role_policy(RoleName=file.head.profile, PolicyName="eagleray")
    return file


def statement(role: str, **given: Any) -> Plant:
    """One more thing that a role may do."""

    def plant(cloud: Cloud, file: ClusterFile) -> ClusterFile:
        policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", **given}}
        name = file.head.profile if role == "head" else file.workers[0].profile
        cloud.iam.put_role_policy(RoleName=name, PolicyName="more", PolicyDocument=json.dumps(policy))
        return file

    return plant


def untrusted(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    trust = {
        "Statement": {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    }
    named = {"RoleName": file.workers[0].profile, "PolicyDocument": json.dumps({"Version": "2012-10-17", **trust})}
    cloud.iam.update_assume_role_policy(**named)
    return file


def bounded(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    made = cloud.iam.create_policy(PolicyName="bound", PolicyDocument=json.dumps(ALL_OF_S3))["Policy"]["Arn"]
    cloud.iam.put_role_permissions_boundary(RoleName=file.head.profile, PermissionsBoundary=made)
    return file


def private_subnet(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.ec2.modify_subnet_attribute(SubnetId=file.head.subnets[0], MapPublicIpOnLaunch={"Value": False})
    return file


def open_group(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    cloud.ec2.authorize_security_group_ingress(GroupId=group(cloud), IpPermissions=[rule])
    return file


def group(cloud: Cloud) -> str:
    wanted = [{"Name": "group-name", "Values": ["eagleray"]}]
    return str(cloud.ec2.describe_security_groups(Filters=wanted)["SecurityGroups"][0]["GroupId"])


def no_group(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    cloud.ec2.delete_security_group(GroupId=group(cloud))
    return file


def other_image(**given: Any) -> Plant:
    def plant(cloud: Cloud, file: ClusterFile) -> ClusterFile:
        cloud.add_image(image="ami-11111111111111111", **given)
        return spoilt(file, IMAGE, "ami-11111111111111111")

    return plant


def used_up(cloud: Cloud, file: ClusterFile) -> ClusterFile:
    """Somebody else's machines have taken the quota."""
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
    cloud.ec2.run_instances(ImageId=IMAGE, InstanceType="g5.xlarge", MinCount=15, MaxCount=15, **spot)
    return file


FAULTS: list[Fault] = [
    ("used-up", used_up, "quota", "warning", ("60 of them in use", "room for 1", "--desired-value 76")),
    ("no-driver", other_image(name="ubuntu-noble-24.04", owner_alias="099720109477"), "image", "warning", ("driver",)),
    ("arm-image", other_image(architecture="arm64"), "image", "stop", ("arm64",)),
    ("no-bucket", no_bucket, "bucket", "stop", ("no bucket birds-", "--create")),
    ("no-profile", no_profile, "profile", "stop", ("eagleray-us-west-2-worker", "does not exist", "--create")),
    ("no-role", profile_without_role, "profile", "stop", ("has no role", "--create")),
    ("all-of-s3", all_of_s3, "profile", "stop", ("reaches all of S3 (*)", "--create")),
    ("managed", managed_s3, "profile", "stop", ("reaches all of S3 (*)", "--create")),
    ("no-policy", no_policy, "profile", "stop", ("s3:PutObject", "ec2:RunInstances", "--create")),
    ("pass-role", no_pass_role, "pass role", "stop", ("iam:PassRole on eagleray-us-west-2-worker", "--create")),
    ("untrusted", untrusted, "profile", "stop", ("EC2 may not take the role", "--create")),
    ("bounded", bounded, "profile", "warning", ("permissions boundary", "--create --print")),
    (
        "another-bucket",
        statement("worker", Action="s3:GetObject", Resource="arn:aws:s3:::photos/*"),
        "profile",
        "warning",
        ("also reaches arn:aws:s3:::photos/*", "if not meant"),
    ),
    (
        "any-role",
        statement("head", Action="iam:PassRole", Resource="*"),
        "pass role",
        "warning",
        ("any role of the account", "--create"),
    ),
    ("private", private_subnet, "subnets", "stop", ("no public address", "--subnets")),
    ("group-open", open_group, "ssh", "stop", ("security group eagleray opens SSH to the world", "--create")),
    (
        "no-group",
        no_group,
        "security group",
        "stop",
        ("has no security group sg-", "--create makes it and writes its id"),
    ),
]


@pytest.mark.parametrize(("plant", "check", "level", "words"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_found_with_its_remedy(
    cloud: Cloud, plant: Plant, check: str, level: str, words: tuple[str, ...]
) -> None:
    findings = look(plant(cloud, ready(cloud)))
    told = said(findings, check, level)
    for word in words:
        assert word in told
