"""The checks of subnets and the security group: facts in, findings out."""

from dataclasses import replace

from tests.cloud import ADDRESS, spoilt
from tests.preflightfacts import SUBNETS, facts, file, only
from tune.cloud import checksnetwork
from tune.cloud.clusterfile import ClusterFile
from tune.cloud.facts import Fact, Facts, Finding, Group, Subnet

__all__ = ["facts", "file"]


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
