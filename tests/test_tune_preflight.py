"""The pre-flight against an account inside the process: nothing to say of a good one, and never a guess."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cloud import HERE, ROOT, Cloud, look, said, spoilt, trouble
from tests.goodaccount import cloud, file, shared
from tune.cloud.checking import preflight
from tune.cloud.checks import verdict
from tune.cloud.clusterfile import ClusterFile, read
from tune.cloud.facts import Needs
from tune.cloud.preflightsettings import PreflightConfig

__all__ = ["cloud", "file", "shared"]


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
