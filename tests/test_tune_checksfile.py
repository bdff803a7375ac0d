"""The checks of the cluster file alone: its SSH rules and its limits."""

from tests.cloud import ADDRESS
from tests.preflightfacts import changed, facts, file
from tune.cloud import checksfile
from tune.cloud.facts import Facts

__all__ = ["facts", "file"]


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
