"""What the tests of the pre-flight's checks share: the facts of a good account, ways to spoil them."""

from dataclasses import replace
from typing import Any

import pytest

from tests.cloud import ADDRESS, HERE, IMAGE, IMAGE_NAME, ROOT, spoilt
from tune.cloud.clusterfile import ClusterFile, read
from tune.cloud.clusterfill import Filling, filled
from tune.cloud.facts import Bucket, Cost, Fact, Facts, Finding, Identity, Image, Machine, Needs, Quota, Subnet
from tune.cloud.quotas import NAMES

SUBNETS = (Subnet("subnet-a", "us-west-2a", "vpc-1"), Subnet("subnet-b", "us-west-2b", "vpc-1"))
MACHINES = {
    "m6i.xlarge": Machine("m6i.xlarge", 4, 16384),
    "g6.xlarge": Machine("g6.xlarge", 4, 16384, gpu="NVIDIA L4", gpus=1, gpu_mib=22888),
    "g5.xlarge": Machine("g5.xlarge", 4, 16384, gpu="NVIDIA A10G", gpus=1, gpu_mib=24576),
    "g5.4xlarge": Machine("g5.4xlarge", 16, 65536, gpu="NVIDIA A10G", gpus=1, gpu_mib=24576),
    "g4dn.xlarge": Machine("g4dn.xlarge", 4, 16384, gpu="NVIDIA T4", gpus=1, gpu_mib=16384),
    "g4ad.xlarge": Machine("g4ad.xlarge", 4, 16384, gpu="AMD Radeon Pro V520", gpus=1, gpu_mib=8192),
    "g5g.xlarge": Machine("g5g.xlarge", 4, 8192, ("arm64",), "NVIDIA T4g", 1, 16384),
    "p3.2xlarge": Machine("p3.2xlarge", 8, 62464, gpu="NVIDIA V100", gpus=1, gpu_mib=16384),
    "t3.medium": Machine("t3.medium", 2, 4096),
    "c5.4xlarge": Machine("c5.4xlarge", 16, 32768),
}
BOTH = frozenset({"us-west-2a", "us-west-2b"})


@pytest.fixture
def file() -> ClusterFile:
    filling = Filling(
        image=IMAGE,
        ssh_from=ADDRESS,
        subnets=("subnet-a", "subnet-b"),
        group="sg-1",
        bucket="birds",
        profiles={"head": "the-head"},
        python=".".join(HERE.python.split(".")[:2]),
    )
    return filled(read(str(ROOT / "cluster.yaml")), filling)


@pytest.fixture
def facts(file: ClusterFile) -> Facts:
    return Facts(
        file,
        HERE,
        needs=Fact(Needs(1e9, 2e9)),
        identity=Fact(Identity("arn:aws:iam::1:user/ana", "1")),
        regions=Fact({"us-west-2": "opt-in-not-required", "us-west-1": "opted-in", "ap-east-1": "not-opted-in"}),
        machines=Fact(MACHINES),
        offered=Fact(dict.fromkeys(MACHINES, BOTH)),
        subnets=Fact(SUBNETS),
        default_vpc=Fact("vpc-1"),
        groups=Fact(()),
        keys=Fact(frozenset({"mine"})),
        images=Fact({IMAGE: Image(IMAGE_NAME, "amazon", disk_gib=60)}),
        bucket=Fact(Bucket("us-west-2")),
        profiles=Fact({}),
        spot_role=Fact(True),
        quotas={code: Fact(Quota(name, 64)) for code, name in NAMES.items()},
        running=Fact(()),
        spot_prices=Fact({("g6.xlarge", "us-west-2a"): 0.31, ("g6.xlarge", "us-west-2b"): 0.29}),
        on_demand={
            name: Fact(Cost(1.0, "the table")) for name in ("m6i.xlarge", "g6.xlarge", "g5.xlarge", "g4dn.xlarge")
        },
    )


def only(findings: Any) -> Finding:
    """The one that is not ok."""
    bad: list[Finding] = [finding for finding in findings if finding.verdict != "ok"]
    assert len(bad) == 1, bad
    return bad[0]


def changed(facts: Facts, old: str, new: str) -> Facts:
    return replace(facts, file=spoilt(facts.file, old, new))
