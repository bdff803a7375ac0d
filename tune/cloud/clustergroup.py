"""The security group that a cluster file describes, made before Ray would: Ray's own lets the whole world in to SSH.

Ray adds a rule for port 22 from everywhere to whatever the file says when it fills a group, and leaves a group alone
that has rules (`_create_default_inbound_rules` and `_upsert_security_group_rules` in its aws/config.py, Ray 2.60).
"""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from data.errors import UserError
from tune.aws import Aws, shell
from tune.cloud.accesspolicies import CLUSTER_TAG, OUR_TAG
from tune.cloud.askaccess import default_vpc, groups, subnets
from tune.cloud.checksfile import command
from tune.cloud.clusterfile import UNSET_SUBNET, ClusterFile
from tune.cloud.clusterfill import Filling, filled
from tune.cloud.facts import Group
from tune.cloud.inboundrules import within


def told(what: str, *, made: bool, changed: bool = False) -> str:
    """The line for one thing that is there now."""
    return f"{'made' if made else 'changed' if changed else 'is there':<10}{what}"


def our_tags(file: ClusterFile) -> list[dict[str, str]]:
    """On all that is made for a cluster."""
    return [{"Key": OUR_TAG, "Value": file.name}]


def vpc_of(file: ClusterFile, cloud: Aws) -> str:
    """Where the cluster's machines will stand. `UserError` where there is no place."""
    named = {name for kind in file.types for name in kind.subnets}
    vpcs = {subnet.vpc for subnet in subnets(cloud) if subnet.name in named}
    if not named:
        vpcs = {default_vpc(cloud)} - {"none"}
    if len(vpcs) != 1:
        where = f"{len(vpcs)} VPCs" if vpcs else "no VPC"
        raise UserError(
            f"{file.path}: its subnets lie in {where} of {file.region}; {command(file, '--write --subnets …')}"
        )
    return vpcs.pop()


def _wanted(file: ClusterFile, group: str) -> list[dict[str, Any]]:
    """The rules: those of the file, and everything between the members."""
    return [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}, *(file.group.get("IpPermissions") or ())]


def named_group(file: ClusterFile, cloud: Aws) -> Group | None:
    """The group of the file's name in its VPC, if there is one. `UserError` where it is not this cluster's."""
    vpc = vpc_of(file, cloud)
    found = [group for group in groups(cloud, file) if group.vpc == vpc and group.name == file.group_name]
    tags = found[0].tags if found else {}
    if found and found[0].rules and file.name not in (tags.get(OUR_TAG), tags.get(CLUSTER_TAG)):
        what = f"there is a security group {file.group_name} that is not of cluster {file.name}"
        raise UserError(f"{what}; write another provider.security_group.GroupName into {file.path}")
    return found[0] if found else None


def with_group(file: ClusterFile, cloud: Aws) -> ClusterFile:
    """The file with the id of its group, where its node types have a place for it and the group is there."""
    if not any(kind.groups for kind in file.types) or UNSET_SUBNET in file.head.subnets:
        return file
    group = named_group(file, cloud)
    if group is None or not group.rules or _others(file, cloud):
        return file
    return filled(file, Filling(group=group.id))


def _others(file: ClusterFile, cloud: Aws) -> bool:
    """Whether the file names groups of somebody's own, which are left alone. One that is gone is nobody's."""
    named = [group for group in groups(cloud, file) if group.id in file.group_ids]
    return any(group.name != file.group_name for group in named)


def make_group(file: ClusterFile, cloud: Aws) -> Iterator[str]:
    """The security group with exactly the file's rules. Ray adds SSH from everywhere to one that it fills itself."""
    if _others(file, cloud):
        return
    found = named_group(file, cloud)
    group = found or _made_group(file, cloud, vpc_of(file, cloud))
    wrong = [rule for rule in group.rules if not _meant(rule, file, group.id)]
    missing = [rule for rule in _wanted(file, group.id) if not any(_alike(rule, there) for there in group.rules)]
    if wrong:
        cloud.ask("ec2", "revoke_security_group_ingress", GroupId=group.id, IpPermissions=wrong)
    if missing:
        cloud.ask("ec2", "authorize_security_group_ingress", GroupId=group.id, IpPermissions=missing)
    what = f"security group {file.group_name} ({group.id}): port 22 from {', '.join(file.ssh_from)}, all inside"
    yield told(what, made=not found, changed=bool(wrong or missing))


def _made_group(file: ClusterFile, cloud: Aws, vpc: str) -> Group:
    made = cloud.ask("ec2", "create_security_group", **_group_parameters(file), VpcId=vpc)
    return Group(made["GroupId"], file.group_name, vpc)


def _group_parameters(file: ClusterFile) -> dict[str, Any]:
    tags = [*our_tags(file), {"Key": CLUSTER_TAG, "Value": file.name}]
    return {
        "GroupName": file.group_name,
        "Description": f"eagleray cluster {file.name}",
        "TagSpecifications": [{"ResourceType": "security-group", "Tags": tags}],
    }


def _meant(rule: dict[str, Any], file: ClusterFile, group: str) -> bool:
    return any(_alike(wanted, rule) for wanted in _wanted(file, group))


def _alike(wanted: dict[str, Any], there: dict[str, Any]) -> bool:
    """Whether a rule as written and one as AWS lists it let in the same."""
    if any(pair.get("GroupId") for pair in wanted.get("UserIdGroupPairs") or ()):
        return within(there, wanted["UserIdGroupPairs"][0]["GroupId"]) and not there.get("IpRanges")
    return _essence(wanted) == _essence(there)


def _essence(rule: dict[str, Any]) -> tuple[Any, ...]:
    four = {each["CidrIp"] for each in rule.get("IpRanges") or ()}
    six = {each["CidrIpv6"] for each in rule.get("Ipv6Ranges") or ()}
    pairs = {each.get("GroupId") for each in rule.get("UserIdGroupPairs") or ()}
    return str(rule.get("IpProtocol")), rule.get("FromPort"), rule.get("ToPort"), four, six, pairs


def group_shell(file: ClusterFile) -> list[str]:
    """The group's id is known only once it is made: it goes through a variable of the shell."""
    if file.group_ids:
        return []
    at = f"--region {file.region}"
    named = next((name for kind in file.types for name in kind.subnets), "")
    query = f"describe-subnets --subnet-ids {named} --query 'Subnets[0].VpcId'"
    if not named:
        query = "describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId'"
    made = shell("ec2", "create_security_group", _group_parameters(file), file.region)
    rules = shlex.quote(json.dumps(file.group.get("IpPermissions") or []))
    allow = f'aws ec2 authorize-security-group-ingress {at} --group-id "$GROUP"'
    return [
        f"VPC=$(aws ec2 {query} --output text {at})",
        f'GROUP=$({made} --vpc-id "$VPC" --query GroupId --output text)',
        f'{allow} --protocol all --source-group "$GROUP"',
        f"{allow} --ip-permissions {rules}",
        f"{command(file, '--write')}  # puts the group's id into the file",
    ]
