"""On the lab's laptop: bucket, roles and group as cluster.yaml wants them; prints what is to fill in.

The roles have the policies that preflight.py --create gives them, so LAB_ENFORCE_IAM=1 tries those. Of --create and
--write themselves this shows nothing: they ask for images and zones that the lab's EC2 has not got.
"""

import json
import sys
from pathlib import Path

import boto3
import botocore.exceptions

from tune.cloud.accesspolicies import POLICY, head_policy, trust, worker_policy
from tune.cloud.clusterfile import UNSET_NAME, ClusterFile, parse

REGION, NAME, BUCKET, LAPTOP = "us-west-2", "eagleray-lab", "eagleray-lab", "10.99.0.2/32"
HEAD = f"{NAME}-head"
"""The head's role and profile; the workers' have the bucket's name, which overlay.yaml fills in for all."""


def _filled() -> ClusterFile:
    """The committed file, as far as policies are made of it."""
    path = Path("cluster.yaml")
    return parse(str(path), path.read_text().replace(UNSET_NAME, NAME))


def _make_roles() -> None:
    iam, file = boto3.client("iam", REGION), _filled()
    for name, policy in ((NAME, worker_policy(file)), (HEAD, head_policy(file))):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust(file)))
        iam.put_role_policy(RoleName=name, PolicyName=POLICY, PolicyDocument=json.dumps(policy))
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


def main() -> int:
    """Make what is not there yet; as often as wanted."""
    ec2 = boto3.client("ec2", REGION)
    subnets = sorted(ec2.describe_subnets()["Subnets"], key=lambda subnet: str(subnet["AvailabilityZone"]))[:2]
    try:
        boto3.client("s3", REGION).create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        _make_roles()
        vpc = subnets[0]["VpcId"]
        group = ec2.create_security_group(GroupName="eagleray", Description="ours", VpcId=vpc)["GroupId"]
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": LAPTOP}]}
        inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, inside])
    except botocore.exceptions.ClientError as error:
        if "Already" not in error.response["Error"]["Code"]:
            raise
    named = [{"Name": "group-name", "Values": ["eagleray"]}]
    (group,) = [found["GroupId"] for found in ec2.describe_security_groups(Filters=named)["SecurityGroups"]]
    print(json.dumps({"subnets": [subnet["SubnetId"] for subnet in subnets], "group": group}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
