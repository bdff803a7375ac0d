"""What is billed besides machines: disks, snapshots, addresses. AWS's list prices, of February 2024."""

from typing import Final

HOURS_A_MONTH: Final = 730
ADDRESS_USD: Final = 0.005
"""A public IPv4 address for an hour, in every region."""
_DISKS: Final = {"gp3": 0.08, "gp2": 0.10, "io1": 0.125, "io2": 0.125, "st1": 0.045, "sc1": 0.015, "standard": 0.05}
"""A GB and month in the regions of the United States, by kind."""
_SNAPSHOT: Final = 0.05


def disk_usd(gigabytes: float, kind: str, region: str) -> float:
    """USD an hour for a disk of that size. Outside the United States twice the price there, which none exceeds."""
    return gigabytes * _DISKS.get(kind, max(_DISKS.values())) * _elsewhere(region) / HOURS_A_MONTH


def snapshot_usd(gigabytes: float, region: str) -> float:
    """USD an hour at most: only what differs from other snapshots is stored."""
    return gigabytes * _SNAPSHOT * _elsewhere(region) / HOURS_A_MONTH


def _elsewhere(region: str) -> int:
    return 1 if region.startswith("us-") else 2
