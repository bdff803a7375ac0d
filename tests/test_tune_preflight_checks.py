"""The checks by themselves: facts in, findings out."""

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.cloud import ADDRESS, HERE, IMAGE, IMAGE_NAME, ROOT, spoilt
from tune.cloud import (
    checksaccess,
    checksfile,
    checksmachines,
    checksmoney,
    checksnetwork,
)
from tune.cloud.checks import CHECKS, lines, run, verdict
from tune.cloud.clusterfile import ClusterFile, parse, read
from tune.cloud.clusterfill import Filling, filled
from tune.cloud.facts import (
    Bucket,
    CannotTellError,
    Cost,
    Fact,
    Facts,
    Finding,
    Group,
    Identity,
    Image,
    Machine,
    Needs,
    Quota,
    Running,
    Subnet,
)
from tune.cloud.preflightsettings import Plan, PreflightConfig
from tune.cloud.quotas import NAMES, ON_DEMAND_P, ON_DEMAND_STANDARD, SPOT_G, SPOT_P, SPOT_P5, quota_of
from tune.cloud.trainingmemory import GIB, needs

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


@pytest.mark.parametrize(
    ("name", "spot", "code"),
    [
        ("m6i.xlarge", False, ON_DEMAND_STANDARD),
        ("g6e.2xlarge", True, SPOT_G),
        ("gr6.4xlarge", True, SPOT_G),
        ("p3.2xlarge", True, SPOT_P),
        ("p4d.24xlarge", True, SPOT_P),
        ("p5.48xlarge", True, SPOT_P5),
        ("p5.48xlarge", False, ON_DEMAND_P),
        ("p6-b200.48xlarge", True, ""),
        ("inf2.xlarge", False, ""),
        ("is4gen.medium", False, ON_DEMAND_STANDARD),
        ("", False, ""),
    ],
)
def test_which_quota_a_type_counts_against(name: str, spot: bool, code: str) -> None:
    assert quota_of(name, spot=spot) == code


def test_a_family_without_a_known_quota_is_not_ok(facts: Facts) -> None:
    found = checksmoney.quotas(changed(facts, "g4dn.xlarge", "inf2.xlarge"))
    told = [finding for finding in found if finding.verdict == "warning"]
    assert len(told) == 2
    assert "could not check the quota of inf2.xlarge (spot)" in told[0].what


def test_the_most_vcpus_are_those_of_the_largest_workers(facts: Facts) -> None:
    head, *workers = facts.file.types
    spot, small = workers[0], replace(workers[-1], max_workers=2)
    assert checksmoney.most_vcpus([(4, head), (4, spot), (16, small)], 4) == 4 + 2 * 16 + 2 * 4
    assert checksmoney.most_vcpus([(4, spot)], 2) == 8
    assert checksmoney.most_vcpus([], 4) == 0


def test_machines_of_this_cluster_do_not_count_twice(facts: Facts) -> None:
    mine = replace(facts, running=Fact((Running("g6.xlarge", True, 60, "eagleray"),)))
    assert all(finding.verdict == "ok" for finding in checksmoney.quotas(mine))
    others = replace(facts, running=Fact((Running("g6.xlarge", True, 60, "other"),)))
    assert "room for 1" in only(checksmoney.quotas(others)).what


def test_without_any_room_for_spot_it_stops_and_without_the_fallback_it_goes(facts: Facts) -> None:
    def with_g(spot: float, on_demand: float) -> list[str]:
        quotas = {**facts.quotas, SPOT_G: Fact(Quota("", spot)), "L-DB2E81BA": Fact(Quota("", on_demand))}
        return [finding.verdict for finding in checksmoney.quotas(replace(facts, quotas=quotas))]

    assert sorted(with_g(16, 0)) == ["ok", "ok", "warning"]
    assert sorted(with_g(4, 16)) == ["ok", "ok", "warning"]
    assert sorted(with_g(0, 16)) == ["ok", "ok", "stop"]
    assert sorted(with_g(0, 0)) == ["ok", "stop", "stop"]


def test_the_most_that_an_hour_costs(facts: Facts) -> None:
    dear = replace(facts, on_demand={**facts.on_demand, "g5.xlarge": Fact(Cost(2.0, "AWS's price list"))})
    (found,) = checksmoney.cost(dear)
    # The head 1, four g5 at 2; five disks of 140 GB and five addresses.
    beside = 5 * 140 * 0.08 / 730 + 5 * 0.005
    assert checksmoney.besides(facts.file) == pytest.approx(beside)
    assert f"at most {9 + beside:.2f} USD an hour" in found.what
    assert "AWS's price list, the table" in found.what
    bid = replace(dear, spot_prices=Fact({("g5.xlarge", "us-west-2a"): 3.0}))
    assert "at most 13." in next(iter(checksmoney.cost(bid))).what
    tight = changed(dear, "--max-usd 30", "--max-usd 5")
    assert "the limit of 5 USD may be reached within the first hour" in only(checksmoney.cost(tight)).what


def test_spot_prices_by_zone(facts: Facts) -> None:
    found = {finding.what.partition(":")[0]: finding for finding in checksmoney.spot_prices(facts)}
    assert found["g6.xlarge"].what == "g6.xlarge: us-west-2b 0.290, us-west-2a 0.310 USD an hour now"
    assert found["g5.xlarge"].verdict == "warning"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("t3.medium", "g5.xlarge"),
        ("m6i.xlarge", "g5.xlarge"),
        ("c5.4xlarge", "g5.4xlarge"),
        ("g4ad.xlarge", "g5.xlarge"),
    ],
)
def test_the_nearest_type_with_a_gpu(facts: Facts, name: str, nearest: str) -> None:
    found = [f for f in checksmachines.gpus(changed(facts, "g6.xlarge", name)) if f.verdict == "stop"]
    assert f"; {nearest} is the nearest" in found[0].what
    assert f"InstanceType: {nearest} into g6-spot" in found[0].remedy
    assert ("that CUDA runs on" in found[0].what) == (name == "g4ad.xlarge")


def test_a_worker_may_do_without_a_gpu_if_it_says_so(facts: Facts) -> None:
    plain = changed(facts, "g6.xlarge", "m6i.xlarge")
    plain = replace(plain, file=spoilt(plain.file, "GPU: 1", "GPU: 0"))
    assert all(finding.verdict == "ok" for finding in checksmachines.gpus(plain))
    dear = changed(facts, "m6i.xlarge", "g6.xlarge")
    assert "the head is a g6.xlarge" in only(checksmachines.gpus(dear)).what


def test_machines_that_do_not_fit(facts: Facts) -> None:
    alone = {**MACHINES, "g6.xlarge": replace(MACHINES["g6.xlarge"], spot=False)}
    found = checksmachines.types(replace(facts, machines=Fact(alone)))
    assert "cannot be rented as spot" in only(found).what
    found = checksmachines.types(replace(facts, offered=Fact({**facts.offered.value, "g5.xlarge": frozenset()})))
    assert "choose another region" in only(found).remedy


@pytest.mark.parametrize(
    ("image", "level", "says"),
    [
        (Image(IMAGE_NAME, "amazon", state="pending"), "stop", "is pending"),
        (Image(IMAGE_NAME, "amazon", deprecated="2026-01-01"), "warning", "deprecated since 2026-01-01"),
        (Image("Deep Learning Base OSS Nvidia Driver (Amazon Linux 2023)", "amazon"), "stop", "lets in ec2-user"),
        (Image(IMAGE_NAME, "123456789012"), "warning", "cannot tell whether"),
        (Image(IMAGE_NAME, "amazon", architecture="arm64"), "stop", "is for arm64"),
    ],
)
def test_images(facts: Facts, image: Image, level: str, says: str) -> None:
    found = only(checksmachines.images(replace(facts, images=Fact({IMAGE: image}))))
    assert (found.verdict, says in found.what) == (level, True)
    assert found.remedy


def test_the_open_driver_does_not_know_old_gpus(facts: Facts) -> None:
    found = only(checksmachines.images(changed(facts, "g6.xlarge", "p3.2xlarge")))
    assert "does not know the GPUs of p3.2xlarge" in found.what


def test_without_an_image_rays_own_would_be_taken(facts: Facts) -> None:
    found = checksmachines.images(changed(facts, "ImageId:", "KernelId:"))
    assert "Ray's default is too old" in only(found).what


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("VolumeSize: 140", "VolumeSize: 59", "less than the image's 60"),
        ("/dev/sda1", "/dev/xvda", "not the image's root disk"),
        ("DeleteOnTermination: true", "DeleteOnTermination: false", "is billed, when the machine is gone"),
    ],
)
def test_disks(facts: Facts, old: str, new: str, says: str) -> None:
    found = list(checksmachines.disks(changed(facts, old, new)))
    assert len(found) == 6
    assert all(says in finding.what and finding.remedy for finding in found)


def test_subnets(facts: Facts) -> None:
    def told(*subnets: Subnet, vpc: str = "vpc-1", old: str = "x", new: str = "x") -> list[Finding]:
        file = spoilt(facts.file, old, new) if old != "x" else facts.file
        return list(checksnetwork.subnets(replace(facts, file=file, subnets=Fact(subnets), default_vpc=Fact(vpc))))

    assert [finding.what for finding in told(*SUBNETS)] == ["2 in the default VPC: us-west-2a, us-west-2b"]
    assert "2 in vpc-1" in told(*SUBNETS, vpc="vpc-2")[0].what
    assert "has no subnet subnet-b" in only(told(SUBNETS[0])).what
    assert "lie in 2 VPCs" in only(told(SUBNETS[0], replace(SUBNETS[1], vpc="vpc-2"))).what
    hidden = replace(SUBNETS[1], public=False)
    assert "subnet-b get no public address" in only(told(SUBNETS[0], hidden)).what
    inside = told(SUBNETS[0], hidden, old="region: us-west-2\n", new="region: us-west-2\n    use_internal_ips: true\n")
    assert [finding.verdict for finding in inside] == ["ok"]
    none = {"old": "SubnetIds: [subnet-a, subnet-b]", "new": "Tags: []"}
    assert "no default VPC" in only(told(vpc="none", **none)).what
    assert [finding.verdict for finding in told(*SUBNETS, **none)] == ["ok"]


def test_the_security_group(facts: Facts) -> None:
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-1"}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ADDRESS}]}
    good = Group("sg-1", "eagleray", "vpc-1", (inside, ssh))

    def told(*groups: Group, file: ClusterFile = facts.file) -> list[str]:
        found = checksnetwork.group(replace(facts, file=file, groups=Fact(groups)))
        return [f"{finding.verdict} {finding.what} {finding.remedy}".strip() for finding in found]

    assert told(good) == [f"ok security group eagleray: port 22 from {ADDRESS}, all inside"]
    assert "has no security group sg-1" in told()[0]
    assert "lets the nodes not reach each other" in told(replace(good, rules=(ssh,)))[0]
    assert "lets in nobody to port 22" in told(replace(good, rules=(inside,)))[0]
    assert "belongs to vpc-2, the subnets to vpc-1" in told(replace(good, vpc="vpc-2"))[0]
    world = {**ssh, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    assert "opens SSH to the world" in told(replace(good, rules=(inside, world)))[0]
    own = replace(good, name="ours", rules=(inside, {**ssh, "IpRanges": [{"CidrIp": "198.51.100.0/24"}]}))
    assert told(own) == ["ok ours (sg-1), your own"]
    assert "narrow the rules of sg-1" in told(replace(own, rules=(world,)))[0]
    # By name only: Ray would find it, or make one of its own that is open.
    by_name = spoilt(facts.file, "SecurityGroupIds: [sg-1]", "Tags: []")
    assert told(good, file=by_name) == told(good)
    for lacking in ((), (replace(good, rules=()),), (replace(good, vpc="vpc-2"),)):
        assert "Ray's own lets in the world to SSH" in told(*lacking, file=by_name)[0]


@pytest.mark.parametrize(
    ("path", "key", "state", "says"),
    [
        ("", "", "", ""),
        ("~/k.pem", "mine", "fine", ""),
        ("~/k.pem", "mine", "missing", "there is no file"),
        ("~/k.pem", "mine", "open", "chmod 600"),
        ("~/k.pem", "lost", "fine", "no key pair lost in us-west-2"),
        ("~/k.pem", "", "fine", "without KeyName in head"),
        ("", "mine", "", "KeyName without"),
    ],
)
def test_key_pairs(facts: Facts, path: str, key: str, state: Any, says: str) -> None:
    text = facts.file.text
    if path:
        text = text.replace("ssh_user: ubuntu", f"ssh_user: ubuntu\n    ssh_private_key: {path}")
    if key:
        text = re.sub(r"^( +)ImageId:", rf"\1KeyName: {key}\n\1ImageId:", text, flags=re.MULTILINE)
    given = replace(facts, file=parse("f", text), private_key=state)
    found = [f"{f.what} {f.remedy}" for f in checksaccess.key_pair(given) if f.verdict == "stop"]
    assert says in "".join(found)
    assert bool(found) == bool(says)


def test_regions_and_buckets(facts: Facts) -> None:
    found = only(checksaccess.region(replace(facts, file=spoilt(facts.file, "us-west-2", "us-west-3"))))
    assert "near: us-west-" in found.what
    afar = only(checksaccess.bucket(replace(facts, bucket=Fact(Bucket("eu-west-1")))))
    assert afar.verdict == "warning"
    assert "--write --region eu-west-1" in afar.remedy
    none = checksaccess.bucket(changed(facts, "s3://birds", "/tmp"))
    assert "no s3:// address" in only(none).what


def test_ssh_rules_of_the_file(facts: Facts) -> None:
    def told(old: str, new: str) -> list[tuple[str, str]]:
        found = checksfile.ssh(changed(facts, old, new))
        return [(finding.verdict, finding.what) for finding in found]

    assert [verdict for verdict, _ in told(ADDRESS, "203.0.113.0/24")] == ["ok"]
    assert told(ADDRESS, "203.0.0.0/22")[0][0] == "warning"
    assert told(ADDRESS, "10.0.0.0/8")[0] == ("stop", "the file opens SSH to the world (10.0.0.0/8)")
    assert "no range" in told(ADDRESS, "everybody")[0][1]
    world = told("IpRanges: [{CidrIp: " + ADDRESS + "}]", "Ipv6Ranges: [{CidrIpv6: '::/0'}]")
    assert world[0] == ("stop", "the file opens SSH to the world (::/0)")
    assert "every port" in told("{IpProtocol: tcp, FromPort: 22, ToPort: 22,", "{IpProtocol: '-1',")[0][1]
    assert "no rule of the file" in told("FromPort: 22, ToPort: 22", "FromPort: 80, ToPort: 80")[-1][1]


def test_limits(facts: Facts) -> None:
    def told(new: str) -> tuple[str, str]:
        (found,) = checksfile.limits(changed(facts, "--ttl 12h --max-usd 30", new))
        return found.verdict, found.what

    assert told("--ttl 90m") == ("ok", "the cluster ends by itself after 90m")
    assert told("--max-usd 5.5") == ("ok", "the cluster ends by itself at 5.5 USD")
    assert told("--ttl 0 --max-usd 0")[0] == "warning"


def test_a_fact_that_could_not_be_had_is_never_good(facts: Facts) -> None:
    with pytest.raises(CannotTellError, match="no permission"):
        _ = Fact[int](why_not="no permission").value
    nothing = Facts(facts.file, HERE)
    findings = run(nothing)
    assert {finding.check for finding in findings if finding.verdict == "ok"} <= {
        *("filled", "ssh", "idle nodes", "versions", "copied files", "time to live", "key pair")
    }
    assert "not checked" in {finding.check for finding in findings}


def test_the_table(facts: Facts) -> None:
    findings = [
        Finding("a", "ok", "fine"),
        Finding("b", "warning", "odd", "mend it"),
        Finding("c", "stop", "bad", "mend it first"),
    ]
    assert lines(findings) == [
        "stop     c               bad",
        "                         -> mend it first",
        "warning  b               odd",
        "                         -> mend it",
        "ok       a               fine",
    ]
    assert verdict(findings) == "1 ok, 1 warning(s), 1 stop(s): do not start this cluster"
    assert len({check.ask for check in CHECKS}) == len(CHECKS)
    with pytest.raises(AssertionError):
        Finding("a", "stop", "no remedy")


def test_training_memory_grows_with_what_is_trained() -> None:
    small, large = needs(Plan("resnet50", "finetune", 224, 8)), needs(Plan("resnet50", "finetune", 224, 32))
    frozen = needs(Plan("resnet50", "frozen", 224, 32))
    assert small.least < small.most < large.most
    assert frozen.most < large.least + 1.5 * GIB
    # 25.6 million weights at 16 bytes, and about 20 million outputs an image that are kept, at 2 or 4.
    assert 1.0 * GIB < large.least < 3.0 * GIB
    assert 4.0 * GIB < large.most < 8.0 * GIB


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"region": "us-west-2"}, "--region changes the file; give --write too"),
        ({"ttl": "8h", "ssh_from": "x"}, "--ssh-from, --ttl changes the file"),
        ({"write": True, "ttl": "soon"}, "ttl must be a time"),
        ({"leftovers": True, "create": True}, "--leftovers only looks"),
        ({"print": True}, "give --create too"),
        ({"json": True, "create": True}, "without --create"),
        ({"write": True, "max_usd": -1.0}, "max_usd must be >= 0"),
    ],
)
def test_flags_that_do_not_go_together(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PreflightConfig(**flags)
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        Plan(batch_size=0)
