"""On the lab's laptop: bucket, profile and group as preflight.py --create makes them; prints what is to fill in."""

import json
import sys

import boto3
import botocore.exceptions

REGION, NAME, BUCKET, LAPTOP = "us-west-2", "eagleray-lab", "eagleray-lab", "10.99.0.2/32"


def main() -> int:
    """Make what is not there yet; as often as wanted."""
    ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
    subnets = sorted(ec2.describe_subnets()["Subnets"], key=lambda subnet: str(subnet["AvailabilityZone"]))[:2]
    try:
        boto3.client("s3", REGION).create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
        iam.create_role(RoleName=NAME, AssumeRolePolicyDocument=json.dumps({"Statement": [trust]}))
        iam.create_instance_profile(InstanceProfileName=NAME)
        iam.add_role_to_instance_profile(InstanceProfileName=NAME, RoleName=NAME)
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
