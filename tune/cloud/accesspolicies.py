"""What head and workers may do in AWS, as the JSON of IAM policies; and what a policy that is there allows.

Nothing here names an account: a role can be handed on, and a machine be rented, in one's own account only.
"""

import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tune.cloud.clusterfile import ClusterFile

CLUSTER_TAG: Final = "ray-cluster-name"
"""Ray's own tag; its launcher finds a cluster's machines by it."""
OUR_TAG: Final = "eagleray-cluster"
"""On all that --create makes."""
POLICY: Final = "eagleray"
"""The name of the inline policy of either role."""
SPOT_SERVICE: Final = "spot.amazonaws.com"

OBJECTS: Final = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")
"""What a node does with the objects of its bucket."""
HEAD: Final = ("ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "ec2:DescribeInstances")
"""What the head does as the autoscaler and as the time-to-live."""
_LOOKING: Final = (
    *("ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeInstanceStatus", "ec2:DescribeImages"),
    *("ec2:DescribeSubnets", "ec2:DescribeSecurityGroups", "ec2:DescribeKeyPairs", "ec2:DescribeVolumes"),
    *("ec2:DescribeSpotPriceHistory", "ec2:DescribeSpotInstanceRequests", "ec2:DescribeAvailabilityZones"),
)
# Two addresses that no bucket of ours has: what reaches either of them reaches all of S3.
_ELSEWHERE: Final = ("arn:aws:s3:::", "arn:aws:s3:::\0/\0")


def role_name(file: ClusterFile, *, head: bool) -> str:
    """Of the role and of its instance profile. IAM's names hold in all regions, so the region is in them."""
    return f"{file.name}-{file.region}-{'head' if head else 'worker'}"


def partition(region: str) -> str:
    """The part of AWS that a region belongs to, as addresses (ARNs) in it begin."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def ec2_service(region: str) -> str:
    """What EC2 is called where a role says who may take it."""
    return "ec2.amazonaws.com.cn" if partition(region) == "aws-cn" else "ec2.amazonaws.com"


def trust(file: ClusterFile) -> dict[str, Any]:
    """Who may take the roles: machines."""
    return _policy({"Principal": {"Service": ec2_service(file.region)}, "Action": "sts:AssumeRole"})


def worker_policy(file: ClusterFile) -> dict[str, Any]:
    """A worker reads and writes the one bucket, and nothing else."""
    bucket = f"arn:{partition(file.region)}:s3:::{file.bucket}"
    return _policy(
        {
            "Sid": "ListTheBucket",
            "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"],
            "Resource": bucket,
        },
        {
            "Sid": "ObjectsOfTheBucket",
            "Action": [*OBJECTS, "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            "Resource": f"{bucket}/*",
        },
    )


def head_policy(file: ClusterFile) -> dict[str, Any]:
    """The head does as the workers do, and rents and ends machines: those of this cluster, of the file's types."""
    here = f"arn:{partition(file.region)}:ec2:{file.region}:*"
    of_ours = {"StringEquals": {f"ec2:ResourceTag/{CLUSTER_TAG}": file.name}}
    kinds = sorted({kind.instance_type for kind in file.workers})
    roles = sorted({kind.profile for kind in file.workers if kind.profile})
    used = ("subnet", "security-group", "network-interface", "volume", "key-pair", "spot-instances-request")
    return _policy(
        *worker_policy(file)["Statement"],
        {"Sid": "Look", "Action": list(_LOOKING), "Resource": "*"},  # EC2 knows no narrower permission to look
        {
            "Sid": "RentWorkersOfThisCluster",
            "Action": "ec2:RunInstances",
            "Resource": f"{here}:instance/*",
            "Condition": {"StringEquals": {f"aws:RequestTag/{CLUSTER_TAG}": file.name, "ec2:InstanceType": kinds}},
        },
        {
            "Sid": "WithWhatAMachineNeeds",
            "Action": "ec2:RunInstances",
            "Resource": [*(f"{here}:{what}/*" for what in used), f"{here.removesuffix('*')}:image/*"],
        },
        {
            "Sid": "NameThemAtTheStart",
            "Action": "ec2:CreateTags",
            "Resource": [f"{here}:{what}/*" for what in ("instance", "volume", "spot-instances-request")],
            "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}},
        },
        {
            "Sid": "EndAndNameWhatIsOurs",
            "Action": ["ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances", "ec2:CreateTags"],
            "Resource": f"{here}:instance/*",
            "Condition": of_ours,
        },
        *([_pass_role(file, roles)] if roles else []),
    )


def _pass_role(file: ClusterFile, roles: list[str]) -> dict[str, Any]:
    """Without it EC2 refuses each launch of a machine that has a role."""
    return {
        "Sid": "GiveWorkersTheirRole",
        "Action": "iam:PassRole",
        "Resource": [f"arn:{partition(file.region)}:iam::*:role/{role}" for role in roles],
        "Condition": {"StringEquals": {"iam:PassedToService": ec2_service(file.region)}},
    }


def _policy(*statements: Mapping[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **each} for each in statements]}


@dataclass(frozen=True)
class Statement:
    """One statement of a policy. Conditions are not weighed: a conditional allow counts as one, a conditional deny
    does not."""

    allow: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditional: bool

    def covers(self, action: str, resource: str) -> bool:
        """Whether it speaks of this action (service:Name) on this resource (an ARN)."""
        named = any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in self.actions)
        return named and any(fnmatch.fnmatchcase(resource, pattern) for pattern in self.resources)


def statements(documents: Iterable[Mapping[str, Any]]) -> list[Statement]:
    """Those of all policies of a role. What names what is *not* meant (NotAction, NotResource) counts as naming all."""
    found = []
    for document in documents:
        for given in _listed(document.get("Statement")):
            actions, resources = given.get("Action", "*"), given.get("Resource", "*")
            allow = given.get("Effect") == "Allow"
            narrow = "NotAction" not in given and "NotResource" not in given
            if allow or narrow:
                named, on = (tuple(map(str, _listed(each))) for each in (actions, resources))
                found.append(Statement(allow, named, on, conditional=bool(given.get("Condition"))))
    return found


def allows(policy: Iterable[Statement], action: str, resource: str) -> bool:
    """Whether the statements let a role do this."""
    speaking = [each for each in policy if each.covers(action, resource)]
    denied = any(not each.allow and not each.conditional for each in speaking)
    return any(each.allow for each in speaking) and not denied


def s3_beyond(policy: Iterable[Statement], bucket: str) -> list[str]:
    """Resources outside the bucket on which some action of S3 is allowed; "*" and the like among them."""
    return sorted(set(_outside(policy, bucket)))


def _outside(policy: Iterable[Statement], bucket: str) -> Iterator[str]:
    for each in policy:
        actions = {pattern.lower() for pattern in each.actions} - {"s3:listallmybuckets"}  # names only
        if each.allow and any(action == "*" or action.startswith("s3") for action in actions):
            for resource in each.resources:
                name = resource.partition(":s3:::")[2].partition("/")[0]
                if (name and name != bucket) or any(fnmatch.fnmatchcase(other, resource) for other in _ELSEWHERE):
                    yield resource


def may_take(trusting: Mapping[str, Any], service: str) -> bool:
    """Whether a role's trust policy lets a service of AWS take it."""
    return any(
        given.get("Effect") == "Allow"
        and any(fnmatch.fnmatchcase("sts:AssumeRole", action) for action in _listed(given.get("Action")))
        and service in _listed((given.get("Principal") or {}).get("Service"))
        for given in _listed(trusting.get("Statement"))
        if isinstance(given.get("Principal") or {}, Mapping)
    )


def same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two documents say the same, whatever the order of their keys."""
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
