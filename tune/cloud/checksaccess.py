"""Checks of who asks and what the nodes may do: credentials, region, bucket, profiles, spot's own role, key pair."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Final

from tune.cloud.accesspolicies import (
    HEAD,
    OBJECTS,
    Statement,
    allows,
    ec2_service,
    may_take,
    partition,
    s3_beyond,
    statements,
)
from tune.cloud.checksfile import command
from tune.cloud.clusterfile import UNSET_NAME, ClusterFile
from tune.cloud.facts import CannotTellError, Facts, Finding, Profile
from tune.cloud.nodetypes import NodeType

_ENABLED: Final = ("opt-in-not-required", "opted-in")


def credentials(facts: Facts) -> Iterator[Finding]:
    """Whether AWS knows the login. What is wrong with it AWS's own answer tells."""
    try:
        who = facts.identity.value
    except CannotTellError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding("credentials", "stop", what, remedy or "set AWS_PROFILE, then aws sts get-caller-identity")
    else:
        yield Finding("credentials", "ok", who.arn)


def region(facts: Facts) -> Iterator[Finding]:
    """Whether there is such a region, and this account may use it."""
    name, known = facts.file.region, facts.regions.value
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.0)
        remedy = command(facts.file, f"--write --region {near[0] if near else 'us-west-2'}")
        yield Finding("region", "stop", f"AWS has no region {name} (near: {', '.join(near)})", remedy)
    elif known[name] not in _ENABLED:
        remedy = f"aws account enable-region --region-name {name}, or another region by --write --region"
        yield Finding("region", "stop", f"{name} is not enabled in this account", remedy)
    else:
        yield Finding("region", "ok", name)


def bucket(facts: Facts) -> Iterator[Finding]:
    """Whether results can be written."""
    file = facts.file
    if not file.bucket:
        yield Finding("bucket", "stop", "no s3:// address in the file", "take over the committed cluster.yaml")
        return
    if file.bucket == UNSET_NAME:
        return
    found = facts.bucket.value
    if not found.region:
        remedy = f"{command(file, '--create')} makes it, or another one by --write --bucket"
        yield Finding("bucket", "stop", f"there is no bucket {file.bucket}", remedy)
    elif found.writable:
        what = f"s3://{file.bucket} cannot be used ({found.writable.replace('; ', ': ')})"
        remedy = "ask its owner for s3:PutObject and s3:DeleteObject, or name your own by --write --bucket"
        yield Finding("bucket", "stop", what, remedy)
    elif found.region != file.region:
        what = f"s3://{file.bucket} lies in {found.region}, the cluster in {file.region}: slower, and traffic costs"
        yield Finding(
            "bucket", "warning", what, f"use a bucket of {file.region}, or move: --write --region {found.region}"
        )
    else:
        yield Finding("bucket", "ok", f"s3://{file.bucket}: an object was put and deleted")


def profiles(facts: Facts) -> Iterator[Finding]:
    """Each node's profile: there, reaching the bucket, and nothing beyond it."""
    file, known = facts.file, facts.profiles.value
    for name, kinds in _by_profile(file).items():
        whose = ", ".join(kind.name for kind in kinds[:2]) + (f" and {len(kinds) - 2} more" if len(kinds) > 2 else "")
        what = f"profile {name} ({whose})"
        if name not in known or not known[name].role:
            lacks = "does not exist" if name not in known else "has no role"
            yield Finding("profile", "stop", f"{what} {lacks}", f"{command(file, '--create')} makes it")
            continue
        role = known[name]
        found = list(_role(file, what, role, statements(role.policies)))
        if any(kind.head for kind in kinds):
            found += _head(file, what, role, statements(role.policies), known)
        if not any(finding.check == "profile" for finding in found):
            yield Finding("profile", "ok", f"{what} reaches s3://{file.bucket} and nothing else in S3")
        yield from found


def _by_profile(file: ClusterFile) -> dict[str, list[NodeType]]:
    named: dict[str, list[NodeType]] = {}
    for kind in file.types:
        if kind.profile and kind.profile != UNSET_NAME:
            named.setdefault(kind.profile, []).append(kind)
    return named


def _role(file: ClusterFile, what: str, role: Profile, policy: list[Statement]) -> Iterator[Finding]:
    """What holds for head and workers alike."""
    repair = f"{command(file, '--create')} writes the least that it needs; detach the rest"
    address = f"arn:{partition(file.region)}:s3:::{file.bucket}"
    missing = [action for action in OBJECTS if not allows(policy, action, f"{address}/runs/x")]
    missing += [] if allows(policy, "s3:ListBucket", address) else ["s3:ListBucket"]
    if missing and file.bucket not in ("", UNSET_NAME):
        yield Finding("profile", "stop", f"{what} may not {', '.join(missing)} on s3://{file.bucket}", repair)
    beyond = s3_beyond(policy, file.bucket)
    if any("*" in (resource.partition(":s3:::")[2].partition("/")[0] or resource) for resource in beyond):
        yield Finding("profile", "stop", f"{what} reaches all of S3 ({', '.join(beyond)})", repair)
    elif beyond:
        yield Finding("profile", "warning", f"{what} also reaches {', '.join(beyond)}", f"if not meant: {repair}")
    if not may_take(role.trust, ec2_service(file.region)):
        yield Finding("profile", "stop", f"EC2 may not take the role of {what}: nodes get no credentials", repair)
    if role.boundary:
        remedy = "look whether it lets the role do what --create --print lists"
        yield Finding("profile", "warning", f"{what} has a permissions boundary, which is not looked into", remedy)


def _head(
    file: ClusterFile, what: str, head: Profile, policy: list[Statement], known: Mapping[str, Profile]
) -> Iterator[Finding]:
    """What the head needs besides: to rent and end workers, and to give them their role."""
    repair = f"{command(file, '--create')} writes it"
    machine = f"arn:{partition(file.region)}:ec2:{file.region}:{head.arn.split(':')[4]}:instance/i-0"
    missing = [action for action in HEAD if not allows(policy, action, machine)]
    if missing:
        yield Finding("profile", "stop", f"{what} may not {', '.join(missing)}: no worker would start or end", repair)
    if allows(policy, "iam:PassRole", f"arn:{partition(file.region)}:iam::000000000000:role/any-other"):
        yield Finding("pass role", "warning", f"{what} may give machines any role of the account", repair)
    for name in sorted({kind.profile for kind in file.workers} & known.keys()):
        if known[name].role and not allows(policy, "iam:PassRole", known[name].arn):
            lack = f"{what} may not give workers their role (iam:PassRole on {known[name].role}): none would start"
            yield Finding("pass role", "stop", lack, repair)
        elif known[name].role:
            yield Finding("pass role", "ok", f"the head may give workers the role {known[name].role}")


def spot_role(facts: Facts) -> Iterator[Finding]:
    """EC2's own role for spot; an account that never rented spot has none, and the head may not make it."""
    if not any(kind.spot for kind in facts.file.types):
        return
    if facts.spot_role.value:
        yield Finding("spot role", "ok", "EC2 may rent spot machines for this account")
    else:
        by_hand = "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
        remedy = f"{by_hand}, or {command(facts.file, '--create')}"
        yield Finding("spot role", "stop", "the account has no service-linked role for spot: none would start", remedy)


def launch(facts: Facts) -> Iterator[Finding]:
    """Whether this login may start the head, asked by a dry run: nothing is launched."""
    if facts.file.unfilled or facts.launch is None:
        return
    refused = facts.launch.value
    if refused:
        what, _, remedy = refused.partition("; ")
        yield Finding("launch", "stop", f"a dry run of the head is refused: {what}", remedy or "mend that in the file")
    else:
        yield Finding("launch", "ok", "this login may start the head, with its role (a dry run: nothing was launched)")


def key_pair(facts: Facts) -> Iterator[Finding]:
    """Ray makes a key of its own unless the file names one; then both halves have to be there."""
    file = facts.file
    named = {kind.name: str(kind.config.get("KeyName", "")) for kind in file.types}
    path = (file.config.get("auth") or {}).get("ssh_private_key", "")
    if not path and not any(named.values()):
        yield Finding("key pair", "ok", "Ray makes one of its own in ~/.ssh")
        return
    before = "key pair"
    if not path:
        yield Finding(before, "stop", "KeyName without auth.ssh_private_key", "name the private key's file, or neither")
    elif without := [name for name, key in named.items() if not key]:
        what = f"auth.ssh_private_key without KeyName in {', '.join(without)}"
        yield Finding(before, "stop", what, "write KeyName there, or leave the key to Ray")
    elif facts.private_key == "missing":
        yield Finding(before, "stop", f"there is no file {path}", "mend auth.ssh_private_key, or leave the key to Ray")
    elif facts.private_key == "open":
        yield Finding(before, "stop", f"others may read {path}: ssh refuses it", f"chmod 600 {path}")
    elif lost := sorted({key for key in named.values() if key not in facts.keys.value}):
        what = f"no key pair {', '.join(lost)} in {file.region}"
        yield Finding(
            before,
            "stop",
            what,
            f"aws ec2 import-key-pair --key-name {lost[0]} --public-key-material …, or leave it to Ray",
        )
    else:
        yield Finding(before, "ok", f"{', '.join(sorted(set(named.values())))} and {path}")
