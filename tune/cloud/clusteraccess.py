"""`--create`: the bucket, the roles and the security group that a cluster file names, made where they are missing.

Made once, they cost nothing (the bucket: what lies in it). A second run changes nothing that is as it should be.
`--print` shows the same as commands of AWS's own command line, for somebody who has the permissions.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from data.errors import UserError
from tune.aws import Aws, AwsError, shell
from tune.cloud.accesspolicies import (
    POLICY,
    SPOT_SERVICE,
    head_policy,
    role_name,
    same,
    trust,
    worker_policy,
)
from tune.cloud.askaccess import document, spot_role
from tune.cloud.checksfile import command
from tune.cloud.clusterfile import UNSET_GROUP, ClusterFile
from tune.cloud.clustergroup import group_shell, make_group, our_tags, told

_UPLOAD_DAYS: Final = 7


@dataclass(frozen=True)
class Step:
    """One call: what it makes, by boto3's names, and the codes by which AWS says that it is there already."""

    what: str
    service: str
    operation: str
    parameters: dict[str, Any] = field(default_factory=dict)
    there: tuple[str, ...] = ()


def create(file: ClusterFile, cloud: Aws) -> Iterator[str]:
    """Make what is missing; a line for each thing, as it is done. `UserError` where AWS refuses."""
    _refuse_unfilled(file)
    yield from _bucket(file, cloud)
    for head in (False, True):
        yield from _role(file, cloud, head=head)
    if any(kind.spot for kind in file.types):
        there = spot_role(cloud)
        if not there:
            _do(cloud, _spot_step())
        yield told("EC2's own role for spot", made=not there)
    yield from make_group(file, cloud)


def printed(file: ClusterFile) -> list[str]:
    """The same as commands. One that says that something exists already has nothing to do."""
    _refuse_unfilled(file)
    steps = [*bucket_steps(file), *role_steps(file, head=False), *role_steps(file, head=True)]
    steps += [_spot_step()] if any(kind.spot for kind in file.types) else []
    return [*(shell(step.service, step.operation, step.parameters, file.region) for step in steps), *group_shell(file)]


def _refuse_unfilled(file: ClusterFile) -> None:
    if lacking := [each.what for each in file.unfilled if each.text != UNSET_GROUP]:
        what = f"{file.path}: {', '.join(dict.fromkeys(lacking))} not filled in yet, so it is not known what to make"
        raise UserError(f"{what}; {command(file, '--write --create --region … --bucket … --ssh-from …')}")


def _do(cloud: Aws, step: Step) -> bool:
    """Whether it was made now."""
    try:
        cloud.ask(step.service, step.operation, **step.parameters)
    except AwsError as error:
        if error.code not in step.there:
            raise
        return False
    return True


def bucket_steps(file: ClusterFile) -> list[Step]:
    """Private, encrypted, tagged; parts of uploads that were broken off are billed, and go after a week."""
    place = {} if file.region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": file.region}}
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    encrypted = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    ended = {
        "ID": "broken-off-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _UPLOAD_DAYS},
    }
    name, mine = {"Bucket": file.bucket}, f"bucket {file.bucket}"
    return [
        Step(mine, "s3", "create_bucket", {**name, **place}, ("BucketAlreadyOwnedByYou",)),
        Step(mine, "s3", "put_public_access_block", {**name, "PublicAccessBlockConfiguration": closed}),
        Step(mine, "s3", "put_bucket_encryption", {**name, "ServerSideEncryptionConfiguration": encrypted}),
        Step(mine, "s3", "put_bucket_lifecycle_configuration", {**name, "LifecycleConfiguration": {"Rules": [ended]}}),
        Step(mine, "s3", "put_bucket_tagging", {**name, "Tagging": {"TagSet": our_tags(file)}}),
    ]


def _bucket(file: ClusterFile, cloud: Aws) -> Iterator[str]:
    """One that exists is somebody's: its settings are not touched."""
    try:
        cloud.ask("s3", "head_bucket", Bucket=file.bucket)
    except AwsError as error:
        if error.code in ("403", "AccessDenied"):
            what = f"bucket {file.bucket} belongs to another account, or is closed to you"
            raise UserError(f"{what}; choose another name by --write --bucket") from error
        if error.code not in ("404", "NoSuchBucket"):
            raise
        for step in bucket_steps(file):
            _do(cloud, step)
        yield told(f"bucket {file.bucket}: private, encrypted", made=True)
    else:
        yield told(f"bucket {file.bucket}", made=False)


def role_steps(file: ClusterFile, *, head: bool) -> list[Step]:
    """A role and the instance profile of the same name that hands it to machines; none where the file names others."""
    name = role_name(file, head=head)
    if not any(kind.profile == name for kind in file.types):
        return []
    policy = head_policy(file) if head else worker_policy(file)
    role, profile, tags = {"RoleName": name}, {"InstanceProfileName": name}, {"Tags": our_tags(file)}
    machines, allowed = {"AssumeRolePolicyDocument": json.dumps(trust(file))}, {"PolicyDocument": json.dumps(policy)}
    there = ("EntityAlreadyExists",)
    return [
        Step(f"role {name}", "iam", "create_role", {**role, **machines, **tags}, there),
        Step(f"policy of {name}", "iam", "put_role_policy", {**role, "PolicyName": POLICY, **allowed}),
        Step(f"profile {name}", "iam", "create_instance_profile", {**profile, **tags}, there),
        # One role is all that a profile can hold.
        Step(f"role of {name}", "iam", "add_role_to_instance_profile", {**profile, **role}, ("LimitExceeded",)),
    ]


def _role(file: ClusterFile, cloud: Aws, *, head: bool) -> Iterator[str]:
    steps = role_steps(file, head=head)
    if not steps:
        return
    made = []
    for step in steps:
        if step.operation != "put_role_policy" or not _as_it_should_be(cloud, step):
            made += [step.what] if _do(cloud, step) else []
    name = role_name(file, head=head)
    does = "rents and ends this cluster's workers, reaches" if head else "reaches"
    what = f"role and profile {name}: {does} s3://{file.bucket}"
    changed = made == [f"policy of {name}"]
    yield told(what, made=bool(made) and not changed, changed=changed)


def _as_it_should_be(cloud: Aws, step: Step) -> bool:
    asked = {name: step.parameters[name] for name in ("RoleName", "PolicyName")}
    try:
        said = cloud.ask("iam", "get_role_policy", **asked)["PolicyDocument"]
    except AwsError as error:
        if error.code != "NoSuchEntity":
            raise
        return False
    return same(document(said), json.loads(step.parameters["PolicyDocument"]))


def _spot_step() -> Step:
    return Step("EC2's own role for spot", "iam", "create_service_linked_role", {"AWSServiceName": SPOT_SERVICE})
