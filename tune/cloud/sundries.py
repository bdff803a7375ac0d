"""What is billed besides machines: disks, snapshots, addresses. List prices as of February 2024, computed, not asked.

The price of an address is AWS's own announcement; those of disks are as other people's tables agree on them for the
cheapest regions. Elsewhere they count twice, which no list price known to us exceeds (the dearest: 1.9 times).
"""

from typing import Final

HOURS_A_MONTH: Final = 730
ADDRESS_USD: Final = 0.005
"""A public IPv4 address for an hour, in every region."""
_CHEAPEST: Final = ("us-east-1", "us-east-2", "us-west-2")
_DISKS: Final = {"gp3": 0.08, "gp2": 0.10, "io1": 0.125, "io2": 0.125, "st1": 0.045, "sc1": 0.025, "standard": 0.05}
"""A GB and month in those regions, by kind; a kind that is not here counts as the dearest."""
_SNAPSHOT: Final = 0.05


def disk_usd(gigabytes: float, kind: str, region: str) -> float:
    """USD an hour for a disk of that size, or more."""
    return gigabytes * _DISKS.get(kind, max(_DISKS.values())) * _elsewhere(region) / HOURS_A_MONTH


def snapshot_usd(gigabytes: float, region: str) -> float:
    """USD an hour at most: only what differs from other snapshots is stored."""
    return gigabytes * _SNAPSHOT * _elsewhere(region) / HOURS_A_MONTH


def _elsewhere(region: str) -> int:
    return 1 if region in _CHEAPEST else 2
