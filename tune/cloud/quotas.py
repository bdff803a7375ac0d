"""EC2's quotas on running machines: which of them a type counts against. They count vCPUs, by family and market.

Names and codes as in the Service Quotas console (docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html).
There is no call that tells the quota of a type.
"""

import re
from typing import Final

from tune.cloud.clusterfile import ClusterFile

ON_DEMAND_STANDARD: Final = "L-1216C47A"
ON_DEMAND_G: Final = "L-DB2E81BA"
ON_DEMAND_P: Final = "L-417A185B"
SPOT_STANDARD: Final = "L-34B43A08"
SPOT_G: Final = "L-3819A6DF"
SPOT_P: Final = "L-7212CCBC"
SPOT_P5: Final = "L-C4BD4855"

NAMES: Final = {
    ON_DEMAND_STANDARD: "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
    ON_DEMAND_G: "Running On-Demand G and VT instances",
    ON_DEMAND_P: "Running On-Demand P instances",
    SPOT_STANDARD: "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests",
    SPOT_G: "All G and VT Spot Instance Requests",
    SPOT_P: "All P4, P3 and P2 Spot Instance Requests",
    SPOT_P5: "All P5 Spot Instance Requests",
}
_STANDARD: Final = frozenset({"a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z"})


def quota_of(instance_type: str, *, spot: bool) -> str:
    """The code of the quota that a type counts against; "" for a family that is not known here (p6, inf, trn, …)."""
    family = re.match(r"([a-z]+)(\d*)", instance_type)
    letters, generation = (family[1], int(family[2] or 0)) if family else ("", 0)
    if letters in _STANDARD:
        return SPOT_STANDARD if spot else ON_DEMAND_STANDARD
    if letters in ("g", "gr", "vt"):
        return SPOT_G if spot else ON_DEMAND_G
    if letters == "p" and not spot:
        return ON_DEMAND_P
    if letters == "p":
        return {2: SPOT_P, 3: SPOT_P, 4: SPOT_P, 5: SPOT_P5}.get(generation, "")
    return ""


def quota_codes(file: ClusterFile) -> list[str]:
    """The quotas that the machines of a cluster count against."""
    found = {quota_of(kind.instance_type, spot=kind.spot) for kind in file.types}
    return sorted(found - {""})
