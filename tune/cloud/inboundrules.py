"""Inbound rules of security groups, in the form that EC2 and cluster.yaml share: who is let in, and to what."""

import ipaddress
from typing import Any, Final

SSH: Final = 22


def reaches(rule: dict[str, Any], port: int) -> bool:
    """Whether an inbound rule lets in to this TCP port."""
    if str(rule.get("IpProtocol", "tcp")) not in ("tcp", "6", "-1"):
        return False
    low, high = int(rule.get("FromPort", -1)), int(rule.get("ToPort", -1))
    return low == -1 or low <= port <= high


def addresses(rule: dict[str, Any]) -> list[str]:
    """The address ranges that an inbound rule lets in."""
    four = [str(entry.get("CidrIp", "")) for entry in rule.get("IpRanges") or ()]
    return four + [str(entry.get("CidrIpv6", "")) for entry in rule.get("Ipv6Ranges") or ()]


def breadth(cidr: str) -> int:
    """How many addresses a range holds; 0 where it is none."""
    try:
        return ipaddress.ip_network(cidr, strict=False).num_addresses
    except ValueError:
        return 0


def within(rule: dict[str, Any], group_id: str) -> bool:
    """Whether a rule lets all traffic pass between the members of the group."""
    inside = any(pair.get("GroupId") == group_id for pair in rule.get("UserIdGroupPairs") or ())
    return inside and str(rule.get("IpProtocol")) == "-1"
