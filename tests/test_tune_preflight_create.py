"""What --create makes, and what it leaves alone; what its policies allow, by our own reading and by moto's."""

import json
from collections.abc import Callable
from typing import Any

import boto3
import botocore.exceptions
import pytest
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin

from data.errors import UserError
from tests.cloud import ADDRESS, REGION, ROOT, Cloud, look, ready, said, spoilt, trouble, written
from tune.aws import Aws
from tune.cloud.accesspolicies import allows, head_policy, s3_beyond, same, statements, worker_policy
from tune.cloud.clusteraccess import create, printed
from tune.cloud.clusterfile import ClusterFile, read
from tune.cloud.clustergroup import make_group, with_group

WORKER, HEAD = "eagleray-us-west-2-worker", "eagleray-us-west-2-head"


def made(file: ClusterFile) -> list[str]:
    return [line.split()[0] + " " + line.split()[1] for line in create(file, Aws(REGION))]


def rules(cloud: Cloud) -> list[dict[str, Any]]:
    wanted = [{"Name": "group-name", "Values": ["eagleray"]}]
    return list(cloud.ec2.describe_security_groups(Filters=wanted)["SecurityGroups"][0]["IpPermissions"])


def test_what_is_missing_is_made_and_then_all_is_well(cloud: Cloud) -> None:
    file = written(cloud)
    missing = {("bucket", "stop"), ("profile", "stop"), ("filled", "stop"), ("spot role", "stop")}
    assert set(trouble(look(file))) == missing
    assert "the security group (line" in said(look(file), "filled", "stop")
    assert [line.split()[0] for line in create(file, Aws(REGION))] == ["made"] * 5
    assert trouble(look(with_group(file, Aws(REGION)))) == []
    bucket = cloud.client("s3")
    closed = bucket.get_public_access_block(Bucket=cloud.bucket)["PublicAccessBlockConfiguration"]
    assert all(closed.values())
    assert bucket.get_bucket_tagging(Bucket=cloud.bucket)["TagSet"] == [
        {"Key": "eagleray-cluster", "Value": "eagleray"}
    ]
    rule = bucket.get_bucket_encryption(Bucket=cloud.bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert bucket.get_bucket_location(Bucket=cloud.bucket)["LocationConstraint"] == REGION
    from_outside = [each for rule in rules(cloud) for each in rule.get("IpRanges", [])]
    assert from_outside == [{"CidrIp": ADDRESS}]


def test_a_second_time_changes_nothing(cloud: Cloud) -> None:
    file = ready(cloud)
    cloud.asked.clear()
    assert [line[:8] for line in create(file, Aws(REGION))] == ["is there"] * 5
    wrote = [call for call in cloud.asked if not call.partition(":")[2].startswith(("Describe", "Get", "List", "Head"))]
    # Those answer that it is there already.
    assert {call.partition(":")[2] for call in wrote} == {
        "CreateRole",
        "CreateInstanceProfile",
        "AddRoleToInstanceProfile",
    }


def test_what_went_wrong_since_is_set_right(cloud: Cloud) -> None:
    file = ready(cloud)
    world = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    group = cloud.ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["eagleray"]}])
    cloud.ec2.authorize_security_group_ingress(
        GroupId=group["SecurityGroups"][0]["GroupId"], IpPermissions=[{**world[0], "FromPort": 8265, "ToPort": 8265}]
    )
    moved = spoilt(file, ADDRESS, "203.0.113.99/32")
    cloud.iam.put_role_policy(RoleName=WORKER, PolicyName="eagleray", PolicyDocument=json.dumps(head_policy(file)))
    lines = list(create(moved, Aws(REGION)))
    assert [line.split()[0] for line in lines] == ["is", "changed", "is", "is", "changed"]
    assert trouble(look(moved)) == []
    assert [each for rule in rules(cloud) for each in rule.get("IpRanges", [])] == [{"CidrIp": "203.0.113.99/32"}]


def test_what_is_somebody_elses_is_not_touched(cloud: Cloud) -> None:
    file = written(cloud)
    vpc = cloud.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = cloud.ec2.create_security_group(GroupName="eagleray", Description="theirs", VpcId=vpc)["GroupId"]
    rule = {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    cloud.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    with pytest.raises(UserError, match=r"not of cluster eagleray; write another provider\.security_group\.GroupName"):
        list(make_group(file, Aws(REGION)))
    cloud.refuse("s3:HeadBucket", "403", status=403)
    with pytest.raises(UserError, match="belongs to another account"):
        list(create(file, Aws(REGION)))
    own = spoilt(file, WORKER, "our-workers")
    cloud.mend()
    with pytest.raises(UserError, match="GroupName"):
        list(create(own, Aws(REGION)))
    assert "our-workers" not in {role["RoleName"] for role in cloud.iam.list_roles()["Roles"]}


def test_an_unfilled_file_names_nothing_to_make(cloud: Cloud) -> None:
    file = read(str(ROOT / "cluster.yaml"))
    asks: list[Callable[[], object]] = [lambda: list(create(file, Aws(REGION))), lambda: printed(file)]
    for ask in asks:
        with pytest.raises(UserError, match=r"not filled in yet.*--write --create"):
            ask()
    lost = spoilt(written(cloud), written(cloud).head.subnets[0], "subnet-1")
    with pytest.raises(UserError, match="its subnets lie in no VPC"):
        list(make_group(spoilt(lost, ", ".join(lost.head.subnets), "subnet-1"), Aws(REGION)))


def test_the_commands_say_the_same(cloud: Cloud) -> None:
    file = written(cloud)
    lines = printed(file)
    assert not [call for call in cloud.asked if call.startswith("iam:")]
    text = "\n".join(lines)
    for command in (
        f"aws s3api create-bucket --region us-west-2 --bucket {cloud.bucket}",
        "aws s3api put-public-access-block",
        f"aws iam create-role --role-name {WORKER}",
        f"aws iam put-role-policy --role-name {HEAD} --policy-name eagleray --policy-document",
        f"aws iam add-role-to-instance-profile --instance-profile-name {HEAD} --role-name {HEAD}",
        "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
        'aws ec2 authorize-security-group-ingress --region us-west-2 --group-id "$GROUP" --protocol all',
    ):
        assert command in text
    assert ADDRESS in text
    assert "123456789012" not in text  # what is printed is passed on


def test_a_worker_reaches_the_bucket_and_nothing_else(cloud: Cloud) -> None:
    file = written(cloud)
    policy = statements([worker_policy(file)])
    bucket = f"arn:aws:s3:::{cloud.bucket}"
    assert allows(policy, "s3:PutObject", f"{bucket}/runs/a")
    assert allows(policy, "s3:ListBucket", bucket)
    assert s3_beyond(policy, cloud.bucket) == []
    for action, resource in (
        ("s3:PutObject", "arn:aws:s3:::other/a"),
        ("s3:DeleteBucket", bucket),
        ("s3:PutBucketPolicy", bucket),
        ("ec2:RunInstances", "*"),
        ("iam:PassRole", f"arn:aws:iam::123456789012:role/{WORKER}"),
    ):
        assert not allows(policy, action, resource)


def test_the_head_rents_in_its_region_for_its_cluster_only(cloud: Cloud) -> None:
    file = written(cloud)
    document = head_policy(file)
    policy = statements([document])
    here = "arn:aws:ec2:us-west-2:123456789012"
    assert allows(policy, "ec2:RunInstances", f"{here}:instance/i-1")
    assert allows(policy, "ec2:RunInstances", "arn:aws:ec2:us-west-2::image/ami-1")
    assert allows(policy, "iam:PassRole", f"arn:aws:iam::123456789012:role/{WORKER}")
    for action, resource in (
        ("ec2:RunInstances", "arn:aws:ec2:eu-west-1:123456789012:instance/i-1"),
        ("ec2:DeleteVolume", f"{here}:volume/v-1"),
        ("ec2:AuthorizeSecurityGroupIngress", f"{here}:security-group/sg-1"),
        ("iam:PassRole", f"arn:aws:iam::123456789012:role/{HEAD}"),
        ("iam:CreateRole", "*"),
    ):
        assert not allows(policy, action, resource)
    conditions = {each["Sid"]: each.get("Condition", {}).get("StringEquals", {}) for each in document["Statement"]}
    rent = conditions["RentWorkersOfThisCluster"]
    assert rent["aws:RequestTag/ray-cluster-name"] == "eagleray"
    assert rent["ec2:InstanceType"] == ["g4dn.xlarge", "g5.xlarge", "g6.xlarge"]
    assert conditions["EndAndNameWhatIsOurs"] == {"ec2:ResourceTag/ray-cluster-name": "eagleray"}
    assert len(json.dumps(document)) < 10_240  # what a role's inline policies may be together


@pytest.mark.parametrize(
    ("resource", "beyond"),
    [
        ("*", ["*"]),
        ("arn:aws:s3:::*", ["arn:aws:s3:::*"]),
        ("arn:aws:s3:::birds*", ["arn:aws:s3:::birds*"]),
        ("arn:*", ["arn:*"]),
        ("arn:aws:s3:::other/*", ["arn:aws:s3:::other/*"]),
        (["arn:aws:s3:::birds", "arn:aws:s3:::birds/*"], []),
    ],
)
def test_reaching_beyond_the_bucket_is_seen(resource: Any, beyond: list[str]) -> None:
    policy = {"Statement": {"Effect": "Allow", "Action": ["s3:Get*"], "Resource": resource}}
    assert s3_beyond(statements([policy]), "birds") == beyond
    everything = {"Statement": [{"Effect": "Allow", "NotAction": "iam:*", "Resource": resource}]}
    assert s3_beyond(statements([everything]), "birds") == beyond
    names = {"Statement": [{"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}]}
    assert s3_beyond(statements([names]), "birds") == []


def test_a_denial_wins(cloud: Cloud) -> None:
    allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    deny = {"Effect": "Deny", "Action": "s3:put*", "Resource": "arn:aws:s3:::b/*"}
    policy = statements([{"Statement": [allow, deny]}])
    assert not allows(policy, "s3:PutObject", "arn:aws:s3:::b/x")
    assert allows(policy, "s3:GetObject", "arn:aws:s3:::b/x")
    sometimes = statements([{"Statement": [allow, {**deny, "Condition": {"Bool": {"x": "y"}}}]}])
    assert allows(sometimes, "s3:PutObject", "arn:aws:s3:::b/x")
    assert same({"a": 1, "b": [2]}, {"b": [2], "a": 1})


def test_moto_lets_a_worker_do_just_that(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ready(cloud)
    cloud.client("s3").create_bucket(Bucket="other-bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    role = cloud.iam.get_role(RoleName=file.workers[0].profile)["Role"]["Arn"]
    key = cloud.client("sts").assume_role(RoleArn=role, RoleSessionName="i-1")["Credentials"]
    worker = boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], key["SessionToken"], REGION)
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
    store = worker.client("s3")
    store.put_object(Bucket=cloud.bucket, Key="runs/a", Body=b"x")
    assert store.get_object(Bucket=cloud.bucket, Key="runs/a")["Body"].read() == b"x"
    assert store.list_objects_v2(Bucket=cloud.bucket)["KeyCount"] == 1
    store.delete_object(Bucket=cloud.bucket, Key="runs/a")
    asks: list[Callable[[], object]] = [
        lambda: store.put_object(Bucket="other-bucket", Key="a", Body=b"x"),
        lambda: store.list_objects_v2(Bucket="other-bucket"),
        lambda: store.delete_bucket(Bucket=cloud.bucket),
        lambda: worker.client("ec2").describe_instances(),
        lambda: worker.client("iam").list_roles(),
    ]
    for refused in asks:
        with pytest.raises(botocore.exceptions.ClientError, match=r"AccessDenied|not authorized|Access Denied"):
            refused()
