"""A small AWS inside the process (moto), set up as an account in which the cluster file works, and ways to spoil it."""

import functools
import json
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.exceptions
import pytest
from botocore.client import BaseClient
from moto import mock_aws
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models.amis import Ami

from tune.aws import Aws
from tune.cloud import quotas
from tune.cloud.askaws import fact, gather
from tune.cloud.checks import run
from tune.cloud.clusteraccess import create
from tune.cloud.clusterfile import ClusterFile, parse, read
from tune.cloud.clustergroup import with_group
from tune.cloud.clusterwrite import planned
from tune.cloud.facts import Facts, Finding, Here, Needs
from tune.cloud.preflightsettings import Plan, PreflightConfig

ROOT: Final = Path(__file__).resolve().parents[1]
REGION: Final = "us-west-2"
IMAGE: Final = "ami-0d1e2f3a4b5c6d7e8"
IMAGE_NAME: Final = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20261006"
PARAMETER: Final = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
ADDRESS: Final = "203.0.113.7/32"
HERE: Final = Here(python=platform.python_version(), ray="2.60.0", ray_pinned="2.60.0")
NEEDS: Final = Needs(least=0.1 * 2**30, most=2.0 * 2**30)
# USD an hour on demand, as the price list would say; what is not in it is looked up in the dated table.
PRICES: Final = {"m6i.xlarge": 0.192, "g6.xlarge": 0.8048, "g5.xlarge": 1.006, "g4dn.xlarge": 0.526}

Answer = Callable[[dict[str, Any]], Any]
Plant = Callable[["Cloud", ClusterFile], ClusterFile]
Fault = tuple[str, Plant, str, str, tuple[str, ...]]
"""A name, how it is planted, the check that must find it, with which verdict, and what must be said."""


class Cloud:
    """One account in one region; what moto cannot do is answered here, and any call can be made to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.mend()
        self.bucket = f"birds-{uuid.uuid4().hex[:12]}"
        send = BaseClient._make_api_call

        def call(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
            name = f"{client.meta.service_model.service_name}:{operation}"
            self.asked.append(name)
            return self.answers[name](parameters) if name in self.answers else send(client, operation, parameters)

        monkeypatch.setattr(BaseClient, "_make_api_call", call)

    def mend(self) -> None:
        """Answer as a good account does again."""
        self.quotas = dict.fromkeys(quotas.NAMES, 64.0)
        self.answers: dict[str, Answer] = {
            "pricing:GetProducts": _price_list,
            "service-quotas:GetServiceQuota": self._quota,
        }

    def client(self, service: str, region: str = REGION) -> Any:
        return _client(service, region)

    @property
    def ec2(self) -> Any:
        return self.client("ec2")

    @property
    def iam(self) -> Any:
        return self.client("iam")

    def refuse(self, call: str, code: str, message: str = "", *, status: int = 400, date: str = "") -> None:
        """Let AWS answer a call ("ec2:DescribeImages") with this error from now on."""

        def answer(_: dict[str, Any]) -> Any:
            metadata = {"HTTPStatusCode": status, "HTTPHeaders": {"date": date}}
            said: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}
            raise botocore.exceptions.ClientError(said, call.partition(":")[2])

        self.answers[call] = answer

    def fail(self, call: str, error: Exception) -> None:
        """Let a call never reach AWS."""

        def answer(_: dict[str, Any]) -> Any:
            raise error

        self.answers[call] = answer

    def add_image(self, name: str = IMAGE_NAME, image: str = IMAGE, **given: Any) -> None:
        backend = get_backend("ec2")[DEFAULT_ACCOUNT_ID][REGION]
        kept = {"owner_alias": "amazon", "architecture": "x86_64", "root_device_type": "ebs", **given}
        backend.amis[image] = Ami(backend, image, name=name, virtualization_type="hvm", **kept)

    def publish(self, parameter: str, image: str) -> None:
        """A public parameter of AWS's own; its interface lets nobody else write one."""
        from moto.ssm.models import Parameter

        backend = get_backend("ssm")[DEFAULT_ACCOUNT_ID][REGION]
        kind: Any = Parameter  # its own types take it for unfinished
        made = kind(
            account_id=DEFAULT_ACCOUNT_ID,
            name=parameter,
            value=image,
            parameter_type="String",
            description="",
            allowed_pattern=None,
            keyid=None,
            last_modified_date=0,
            version=1,
            data_type="aws:ec2:image",
        )
        backend._parameters[parameter].append(made)

    def _quota(self, parameters: dict[str, Any]) -> Any:
        code = parameters["QuotaCode"]
        return {"Quota": {"QuotaName": quotas.NAMES[code], "Value": self.quotas[code]}}


@functools.cache
def _client(service: str, region: str) -> Any:
    return _session().client(service, region_name=region)


@functools.cache
def _session() -> boto3.Session:
    return boto3.Session("cloud", "testing")


def _price_list(parameters: dict[str, Any]) -> Any:
    wanted = {each["Field"]: each["Value"] for each in parameters["Filters"]}
    usd = PRICES.get(wanted["instanceType"])
    terms = {"OnDemand": {"a": {"priceDimensions": {"b": {"pricePerUnit": {"USD": str(usd)}}}}}}
    return {"PriceList": [json.dumps({"terms": terms})] if usd else []}


@contextmanager
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A fresh account with the image and its public parameter, and AWS's own role for nothing yet."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    # One key for all: sessions and clients, which take longest to make, are kept by it.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "cloud")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with mock_aws():
        cloud = Cloud(monkeypatch)
        cloud.add_image()
        cloud.publish(PARAMETER, IMAGE)
        yield cloud


def written(cloud: Cloud, path: str = str(ROOT / "cluster.yaml"), **flags: Any) -> ClusterFile:
    """The committed cluster.yaml as --write fills it in."""
    given = {"write": True, "region": REGION, "bucket": cloud.bucket, "ssh_from": ADDRESS, **flags}
    return planned(read(path), PreflightConfig(file=path, **given))


def ready(cloud: Cloud) -> ClusterFile:
    """The same, with everything made that it names."""
    file = written(cloud)
    list(create(file, Aws(file.region)))
    return with_group(file, Aws(file.region))


def spoilt(file: ClusterFile, old: str, new: str) -> ClusterFile:
    """The file with some of its text changed."""
    assert old in file.text, old
    return parse(file.path, file.text.replace(old, new))


def look(file: ClusterFile, *, here: Here = HERE, needs: Needs = NEEDS) -> list[Finding]:
    """What the pre-flight says of a file in the account."""
    return run(facts(file, here=here, needs=needs))


def facts(file: ClusterFile, *, here: Here = HERE, needs: Needs = NEEDS) -> Facts:
    """What the pre-flight looks at."""
    return gather(file, here, Plan(), fact(lambda: needs))


def trouble(findings: list[Finding]) -> list[tuple[str, str]]:
    """Check and verdict of all that is not good."""
    return [(finding.check, finding.verdict) for finding in findings if finding.verdict != "ok"]


def said(findings: list[Finding], check: str, verdict: str) -> str:
    """What the findings of one check with one verdict say, and their remedies."""
    found = [f"{f.what} -> {f.remedy}" for f in findings if (f.check, f.verdict) == (check, verdict)]
    assert found, trouble(findings)
    return "\n".join(found)
