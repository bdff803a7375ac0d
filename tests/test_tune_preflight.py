"""The pre-flight against an account inside the process: nothing to say of a good one, a remedy for each fault."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cloud import (
    ADDRESS,
    HERE,
    IMAGE,
    ROOT,
    Cloud,
    Fault,
    Plant,
    account,
    look,
    ready,
    said,
    spoilt,
    trouble,
)
from tune.cloud import quotas
from tune.cloud.checking import preflight
from tune.cloud.checks import verdict
from tune.cloud.clusterfile import ClusterFile, read
from tune.cloud.facts import Needs
from tune.cloud.preflightsettings import PreflightConfig


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Cloud, ClusterFile]]:
    """An account and a file that fits it; nothing in the account is changed here but its answers."""
    with pytest.MonkeyPatch.context() as patch, account(patch) as cloud:
        yield cloud, ready(cloud)


@pytest.fixture
def cloud(shared: tuple[Cloud, ClusterFile]) -> Iterator[Cloud]:
    yield shared[0]
    shared[0].mend()


@pytest.fixture
def file(shared: tuple[Cloud, ClusterFile]) -> ClusterFile:
    return shared[1]


def test_nothing_is_said_of_a_good_set_up(cloud: Cloud, file: ClusterFile) -> None:
    findings = look(file)
    assert trouble(findings) == []
    assert {"credentials", "quota", "bucket", "cost", "spot price", "memory", "launch"} <= {f.check for f in findings}
    assert "0 warning(s), 0 stop(s): ray up may come" in verdict(findings)
    assert cloud.ec2.describe_instances()["Reservations"] == []


def test_the_committed_file_is_stopped_with_the_command_that_fills_it(cloud: Cloud) -> None:
    findings = look(read(str(ROOT / "cluster.yaml")))
    told = said(findings, "filled", "stop")
    assert "--write --create --region us-west-2 --bucket NAME --ssh-from YOUR.ADDRESS" in told
    for what in ("image", "subnets", "address", "bucket"):
        assert what in told
    assert trouble(findings) == [("filled", "stop")]


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


@pytest.mark.parametrize(
    ("needs", "level", "words"),
    [
        (Needs(least=2**34, most=2**35), "stop", ("T4 has 14.7 GiB", "16.0 at the least", "--batch-size")),
        (Needs(least=2**30, most=2**34), "warning", ("T4 has 14.7 GiB", "may need up to 16.0", "--batch-size")),
    ],
)
def test_a_model_that_is_too_large(
    cloud: Cloud, file: ClusterFile, needs: Needs, level: str, words: tuple[str, ...]
) -> None:
    told = said(look(file, needs=needs), "memory", level)
    for word in words:
        assert word in told
    assert ("g6" in told) == (level == "stop" and needs.least > 22 * 2**30)


def test_a_small_head(cloud: Cloud, file: ClusterFile) -> None:
    told = said(look(spoilt(file, "m6i.xlarge", "t3.medium")), "memory", "warning")
    assert "head: t3.medium has 4 GiB" in told
    assert "next larger size" in told


def test_other_versions_here_and_there(cloud: Cloud, file: ClusterFile) -> None:
    told = said(look(file, here=replace(HERE, ray="2.59.0")), "versions", "stop")
    assert "Ray 2.59.0, the cluster would run 2.60.0" in told
    told = said(look(file, here=replace(HERE, python="3.10.4")), "versions", "warning")
    assert "Python 3.10" in told
    assert "--write" in told
    told = said(look(spoilt(file, "uv sync", "pip install ray[tune]==2.9.0")), "versions", "stop")
    assert "2.9.0" in told
    told = said(look(spoilt(file, "uv sync", "true"), here=replace(HERE, ray_pinned="")), "versions", "stop")
    assert "pins no version of Ray" in told


def test_what_the_launcher_copies_has_to_be_there(cloud: Cloud, file: ClusterFile) -> None:
    told = said(
        look(file, here=replace(HERE, missing=("./data", "~/.ray/auth_token", "~/.x/keys.json"))),
        "copied files",
        "stop",
    )
    assert "uv run ray get-auth-token --generate" in told
    assert "uv run serve/keys.py add NAME --file ~/.x/keys.json" in told
    assert "not there: ./data" in told


def test_no_credentials_stop_and_the_rest_shares_a_line(
    cloud: Cloud, file: ClusterFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    findings = look(file)
    assert "no AWS credentials found" in said(findings, "credentials", "stop")
    told = said(findings, "not checked", "warning")
    for check in ("region", "subnets", "bucket", "profile", "quota", "cost"):
        assert check in told
    assert len(trouble(findings)) == 2
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "AWS_PROFILE" in said(look(file), "credentials", "stop")


@pytest.mark.parametrize(
    ("call", "check"),
    [
        ("ec2:DescribeInstanceTypes", "types, gpu, image, memory, quota"),
        ("ec2:DescribeSubnets", "subnets, security group, types, spot price"),
        ("ec2:DescribeSecurityGroups", "security group"),
        ("ec2:DescribeImages", "image, disk"),
        ("ec2:DescribeRegions", "region"),
        ("iam:GetInstanceProfile", "profile"),
        ("iam:ListRoles", "spot role"),
        ("ec2:DescribeSpotPriceHistory", "spot price"),
        ("ec2:DescribeInstances", "quota"),
    ],
)
def test_what_may_not_be_asked_is_never_ok(cloud: Cloud, file: ClusterFile, call: str, check: str) -> None:
    cloud.refuse(call, "UnauthorizedOperation", "You are not authorized to perform this operation.", status=403)
    findings = look(file)
    told = said(findings, "not checked", "warning")
    assert f"could not check: {check} (no permission for {call})" in told
    missed = set(check.split(", "))
    assert not missed & {f.check for f in findings if f.verdict == "ok"} - {"types"}


def test_a_quota_and_a_price_that_nobody_tells(cloud: Cloud, file: ClusterFile) -> None:
    cloud.refuse("service-quotas:GetServiceQuota", "AccessDeniedException", status=403)
    cloud.refuse("pricing:GetProducts", "AccessDeniedException", status=403)
    findings = look(spoilt(file, "g6.xlarge", "g6e.xlarge"))
    told = said(findings, "quota", "warning")
    assert "could not check" in told
    assert "servicequotas/home/services/ec2/quotas/L-3819A6DF" in told
    assert "no price is known of g6e.xlarge" in said(findings, "cost", "warning")
    told = said(look(file), "cost", "ok")
    assert "the table of 2025-03-02" in told
    assert "at most" in told


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: ClusterFile, **flags: Any) -> int:
    """The command, in a folder that holds what the file copies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for name in {*file.mounted} - {"./pyproject.toml"}:
        (tmp_path / name.replace("~", ".")).mkdir(parents=True, exist_ok=True)
    (tmp_path / "cluster.yaml").write_text(file.text)
    return preflight(PreflightConfig(**flags))


def test_the_command_tells_people_and_programs(
    cloud: Cloud,
    file: ClusterFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, tmp_path, file) == 0
    assert capsys.readouterr().out.rstrip().endswith("0 warning(s), 0 stop(s): ray up may come")
    bad = spoilt(file, "cache_stopped_nodes: false", "")
    assert run(monkeypatch, tmp_path, bad) == 1
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("stop     idle nodes")
    assert second.strip() == "-> write cache_stopped_nodes: false below provider"
    assert run(monkeypatch, tmp_path, bad, json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["good"]
    assert {row["verdict"] for row in told["findings"]} == {"ok", "stop"}
    assert all(row["remedy"] for row in told["findings"] if row["verdict"] != "ok")
