"""--write: what the flags leave open comes from AWS, nothing is guessed, and a file is written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from tests.cloud import ADDRESS, IMAGE, PARAMETER, REGION, ROOT, Cloud, written
from tune.cloud.accesspolicies import role_name
from tune.cloud.checking import preflight
from tune.cloud.clusterfile import ClusterFile, read
from tune.cloud.clusterwrite import planned, private, ssh_range
from tune.cloud.preflightsettings import PreflightConfig


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_bytes((ROOT / "cluster.yaml").read_bytes())
    return path


def flags(copy: Path, cloud: Cloud, **more: Any) -> PreflightConfig:
    given = {"write": True, "region": REGION, "bucket": f"s3://{cloud.bucket}/", "ssh_from": "203.0.113.7", **more}
    return PreflightConfig(file=str(copy), **given)


def test_a_file_is_filled_and_a_second_time_nothing_changes(
    cloud: Cloud, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preflight(flags(copy, cloud, ttl="8h", max_usd=20.0, with_metrics=True)) == 0
    shown = capsys.readouterr().out
    assert "+            - {IpProtocol: tcp, FromPort: 22, ToPort: 22, IpRanges: [{CidrIp: 203.0.113.7/32}]}" in shown
    assert "next: uv run tune/preflight.py" in shown
    file = read(str(copy))
    assert {each.what for each in file.unfilled} == {"the security group"}  # which --create makes, and fills in
    assert {kind.image for kind in file.types} == {IMAGE}
    assert {kind.profile for kind in file.workers} == {role_name(file, head=False)} == {"eagleray-us-west-2-worker"}
    assert file.head.profile == "eagleray-us-west-2-head"
    zones = {each["SubnetId"]: each["AvailabilityZone"] for each in cloud.ec2.describe_subnets()["Subnets"]}
    # g5 and g4dn are not offered in d.
    assert [zones[name] for name in file.head.subnets] == ["us-west-2a", "us-west-2b", "us-west-2c"]
    before = copy.read_bytes(), copy.stat().st_mtime_ns
    cloud.publish(PARAMETER, "ami-22222222222222222")  # a pinned image stays pinned
    assert preflight(flags(copy, cloud, ttl="8h", max_usd=20.0, with_metrics=True)) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert (copy.read_bytes(), copy.stat().st_mtime_ns) == before
    assert preflight(flags(copy, cloud, image="latest", json=True)) == 0
    told = json.loads(capsys.readouterr().out)
    assert {line[0] for line in told["changed"]} == {"@", "-", "+"}
    assert "ami-22222222222222222" in copy.read_text()


def test_write_and_create_in_one_go(cloud: Cloud, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight(flags(copy, cloud, create=True)) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nmade ") == 5
    assert "+            SecurityGroupIds: [sg-" in shown
    file = read(str(copy))
    assert file.unfilled == ()
    assert len(file.group_ids) == 1
    assert preflight(flags(copy, cloud, create=True, print=True)) == 0
    assert "aws iam create-role" in capsys.readouterr().out


def test_part_of_it_is_filled_without_asking_aws_more_than_needed(
    cloud: Cloud, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preflight(PreflightConfig(file=str(copy), write=True, bucket="birds-2026")) == 0
    assert "not filled in yet: the address that SSH is open to" in capsys.readouterr().out
    cloud.asked.clear()
    assert preflight(PreflightConfig(file=str(copy), write=True, ssh_from=ADDRESS)) == 0
    assert set(cloud.asked) == {"ec2:DescribeSubnets", "ec2:DescribeSecurityGroups"}  # whether the group is there
    assert preflight(PreflightConfig(file=str(copy), write=True, ssh_from="192.168.1.5")) == 0
    assert "lies in a local network" in capsys.readouterr().out


def test_another_region_takes_image_subnets_and_roles_along(cloud: Cloud, copy: Path) -> None:
    preflight(flags(copy, cloud, create=True))
    assert read(str(copy)).group_ids
    cloud.answers["ssm:GetParameter"] = lambda _: {"Parameter": {"Value": "ami-33333333333333333"}}
    preflight(PreflightConfig(file=str(copy), write=True, region="eu-west-1"))
    file = read(str(copy))
    assert file.region == "eu-west-1"
    assert {kind.image for kind in file.types} == {"ami-33333333333333333"}
    listed = cloud.client("ec2", "eu-west-1").describe_subnets()["Subnets"]
    assert set(file.head.subnets) <= {each["SubnetId"] for each in listed}
    # The old region's roles are not this one's.
    assert file.head.profile == "eagleray-eu-west-1-head"
    assert file.head.labels["eagleray.region"] == "eu-west-1"
    assert not file.group_ids


def test_named_subnets(cloud: Cloud) -> None:
    names = [each["SubnetId"] for each in cloud.ec2.describe_subnets()["Subnets"]]
    file = written(cloud, subnets=f"{names[1]}, {names[0]}")
    assert file.head.subnets == (names[1], names[0])
    with pytest.raises(UserError, match=r"--subnets: us-west-2 has no subnet-x; it has subnet-"):
        written(cloud, subnets="subnet-x")


def test_neither_a_default_vpc_nor_subnets(cloud: Cloud) -> None:
    cloud.answers["ec2:DescribeVpcs"] = lambda _: {"Vpcs": []}
    with pytest.raises(UserError, match=r"no default VPC with public subnets; aws ec2 create-default-vpc.*--subnets"):
        written(cloud)


def test_the_older_image_where_the_newer_is_not_published(cloud: Cloud) -> None:
    asked: list[str] = []

    def answer(parameters: dict[str, Any]) -> Any:
        asked.append(parameters["Name"])
        if "24.04" in asked[-1]:
            cloud.refuse("x", "ParameterNotFound")
            return cloud.answers["x"](parameters)
        return {"Parameter": {"Value": "ami-44444444444444444"}}

    cloud.answers["ssm:GetParameter"] = answer
    assert written(cloud).head.image == "ami-44444444444444444"
    assert "ubuntu-22.04/latest/ami-id" in asked[-1]
    cloud.refuse("ssm:GetParameter", "ParameterNotFound")
    with pytest.raises(UserError, match="publishes no Deep Learning Base image"):
        written(cloud)
    cloud.refuse("ssm:GetParameter", "AccessDeniedException", status=403)
    with pytest.raises(UserError, match="no permission for ssm:GetParameter"):
        written(cloud)


def test_a_region_that_is_none(cloud: Cloud, copy: Path) -> None:
    before = copy.read_bytes()
    for name, says in (("us-wets-2", "is no region of AWS"), ("ap-east-1", "is not enabled")):
        with pytest.raises(UserError, match=f"--region {name} {says}.*us-west-2"):
            preflight(flags(copy, cloud, region=name))
    assert copy.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("me", r"checkip\.amazonaws\.com"),
        ("everywhere", "no IP address"),
        ("0.0.0.0/0", "lets in the whole world"),
        ("203.0.0.0/16", "lets in 65,536 addresses"),
        ("2001:db8::1", "rule is for IPv4"),
        ("127.0.0.1", "no address that AWS could see"),
        ("192.0.2.1", "no address that AWS could see"),
    ],
)
def test_an_address_is_not_guessed(given: str, says: str) -> None:
    with pytest.raises(UserError, match=f"--ssh-from {given}: .*{says}"):
        ssh_range(given)


def test_one_address_or_an_office() -> None:
    assert ssh_range(" 203.0.113.7 ") == "203.0.113.7/32"
    assert ssh_range("203.0.113.7/24") == "203.0.113.0/24"
    assert private("10.0.0.1/32")
    assert private("100.64.3.0/24")
    assert not private(ADDRESS)


def test_a_write_that_fails_leaves_the_file(cloud: Cloud, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = copy.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        preflight(flags(copy, cloud))
    assert copy.read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["cluster.yaml"]


def test_a_mark_of_the_encoding_is_kept(cloud: Cloud, copy: Path) -> None:
    copy.write_bytes(b"\xef\xbb\xbf" + copy.read_bytes())
    preflight(flags(copy, cloud))
    assert copy.read_bytes().startswith(b"\xef\xbb\xbf#")


def test_what_is_written_is_what_was_planned(cloud: Cloud, copy: Path) -> None:
    file: ClusterFile = read(str(copy))
    new = planned(file, flags(copy, cloud))
    preflight(flags(copy, cloud))
    assert copy.read_text() == new.text
