"""Checks of what may be rented and what it costs: vCPU quotas, spot prices, the most that an hour can cost."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tune.cloud import quotas as ec2
from tune.cloud.checksfile import command
from tune.cloud.checksmachines import zones_of
from tune.cloud.clusterfile import TIME_TO_LIVE, ClusterFile
from tune.cloud.facts import CannotTellError, Cost, Fact, Facts, Finding, Quota
from tune.cloud.nodetypes import NodeType
from tune.cloud.sundries import ADDRESS_USD, disk_usd

_UNASKED: Final[Fact[Quota]] = Fact()
_NO_PRICE: Final[Fact[Cost]] = Fact()


def quotas(facts: Facts) -> Iterator[Finding]:
    """The vCPUs that the whole cluster takes of each quota, beside what runs already, against what is allowed."""
    file, known, used = facts.file, facts.machines.value, _others(facts)
    rows = {
        code: _Row(
            code,
            tuple((known[kind.instance_type].vcpus, kind) for kind in kinds if kind.instance_type in known),
            facts.quotas.get(code, _UNASKED),
            used.get(code, 0),
        )
        for code in ec2.quota_codes(file)
        if (kinds := [kind for kind in file.types if ec2.quota_of(kind.instance_type, spot=kind.spot) == code])
    }
    spot_has_room = any(row.room for row in rows.values() if any(kind.spot for _, kind in row.machines))
    for row in rows.values():
        yield _quota(file, row, spot_has_room)
    for kind in file.types:
        if not ec2.quota_of(kind.instance_type, spot=kind.spot):
            what = f"could not check the quota of {kind.instance_type} ({kind.market}): its family is not known here"
            yield Finding("quota", "warning", what, f"look at {_console(file, '')}")


@dataclass(frozen=True)
class _Row:
    """A quota: its node types, each with the vCPUs of one machine, and what others use of it."""

    code: str
    machines: tuple[tuple[int, NodeType], ...]
    quota: Fact[Quota]
    used: int

    @property
    def free(self) -> float:
        return max(0.0, self.quota.answer.vcpus - self.used) if self.quota.answer else 0.0

    @property
    def room(self) -> int:
        """How many of its smallest machines may be rented."""
        smallest = min((vcpus for vcpus, _ in self.machines), default=0)
        return int(self.free // smallest) if smallest else 0


def _quota(file: ClusterFile, row: _Row, spot_has_room: bool) -> Finding:
    named = f'"{ec2.NAMES[row.code]}" ({row.code})'
    if row.quota.answer is None:
        what = f"could not check {named}: {row.quota.why_not or 'it was not asked'}"
        return Finding("quota", "warning", what, f"look at {_console(file, row.code)}")
    need = most_vcpus(row.machines, file.max_workers)
    state = f"{named} is {row.quota.answer.vcpus:g} vCPUs" + (f", {row.used} of them in use" if row.used else "")
    if row.free >= need:
        return Finding("quota", "ok", f"{state}; this cluster takes at most {need}")
    names = ", ".join(sorted({kind.name for _, kind in row.machines}))
    what = f"{state}: room for {row.room} of the machines of {names}, which take up to {need}"
    remedy = (
        f'raise "{ec2.NAMES[row.code]}" to {row.used + need}: aws service-quotas request-service-quota-increase '
        f"--service-code ec2 --quota-code {row.code} --desired-value {row.used + need} --region {file.region}"
    )
    # Without its head there is no cluster, and without any spot machine not the one that was meant. With fewer of them,
    # or without the fallback on demand, it works, and waits longer.
    headless = any(kind.head and vcpus > row.free for vcpus, kind in row.machines)
    none = row.room == 0 and not (spot_has_room and not any(kind.spot for _, kind in row.machines))
    return Finding("quota", "stop" if headless or none else "warning", what, remedy)


def most_vcpus(rows: Sequence[tuple[int, NodeType]], max_workers: int) -> int:
    """The most that machines of these types can take at one time: the head, and the largest workers first."""
    total, left = sum(vcpus for vcpus, kind in rows if kind.head), max_workers
    for vcpus, kind in sorted(rows, key=lambda row: -row[0]):
        taken = min(kind.max_workers, left)
        total, left = total + taken * vcpus, left - taken
    return total


def _others(facts: Facts) -> Mapping[str, int]:
    """vCPUs in use by other machines of the account, by quota."""
    used: dict[str, int] = {}
    for each in facts.running.value:
        if each.cluster != facts.file.name:
            code = ec2.quota_of(each.instance_type, spot=each.spot)
            used[code] = used.get(code, 0) + each.vcpus
    return used


def _console(file: ClusterFile, code: str) -> str:
    at = f"/{code}" if code else ""
    return f"https://{file.region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas{at}"


def spot_prices(facts: Facts) -> Iterator[Finding]:
    """What spot costs at this moment, by type and zone."""
    file, prices = facts.file, facts.spot_prices.value
    seen: list[str] = []
    for kind in file.types:
        if not kind.spot or kind.instance_type in seen:
            continue
        seen.append(kind.instance_type)
        zones = zones_of(facts, kind)
        here = {zone: usd for (name, zone), usd in prices.items() if name == kind.instance_type and zone in zones}
        if not here:
            what = f"{kind.instance_type}: AWS tells no spot price in {', '.join(sorted(zones))}: none may be to be had"
            yield Finding("spot price", "warning", what, "nothing, if another type of the file is to be had")
            continue
        listed = ", ".join(f"{zone} {usd:.3f}" for zone, usd in sorted(here.items(), key=lambda row: row[1]))
        yield Finding("spot price", "ok", f"{kind.instance_type}: {listed} USD an hour now")


def cost(facts: Facts) -> Iterator[Finding]:
    """The most that an hour can cost, and the whole life of the cluster."""
    file = facts.file
    unknown: list[str] = []
    prices: dict[str, Cost] = {}
    for name in dict.fromkeys(kind.instance_type for kind in file.types):
        try:
            prices[name] = facts.on_demand.get(name, _NO_PRICE).value
        except CannotTellError:
            if name not in facts.on_demand:
                raise
            unknown.append(name)
    if unknown:
        what = f"no price is known of {', '.join(unknown)} in {file.region}: the most that an hour costs cannot be told"
        yield Finding("cost", "warning", what, "look at https://aws.amazon.com/ec2/pricing/on-demand/")
        return
    machines = most_usd(facts, {name: price.usd for name, price in prices.items()})
    beside = besides(file)
    sources = ", ".join(sorted({price.source for price in prices.values()}))
    head = prices[file.head.instance_type].usd
    hours = _hours(file.option(TIME_TO_LIVE, "ttl"))
    whole = f", {hours * (machines + beside):.2f} in all of its {hours:g} hours" if hours else ""
    what = (
        f"at most {machines + beside:.2f} USD an hour{whole}: head {head:.2f}, {file.max_workers} workers at their "
        f"dearest {machines - head:.2f} (on demand, which spot does not exceed), disks and addresses {beside:.2f}; "
        f"computed from {sources}, without traffic and tax"
    )
    yield Finding("cost", "ok", what)
    limit = file.option(TIME_TO_LIVE, "max-usd")
    if limit.replace(".", "", 1).isdecimal() and 0 < float(limit) < machines + beside:
        what = f"the limit of {limit} USD may be reached within the first hour"
        yield Finding("cost", "warning", what, f"{command(file, '--write --max-usd MORE')}, or a smaller max_workers")


def _hours(text: str) -> float:
    """8h, 90m, … as the time-to-live reads it; 0.0 where there is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    return float(found[1]) * {"s": 1 / 3600, "m": 1 / 60, "h": 1, "d": 24}[found[2] or "h"] if found else 0.0


def most_usd(facts: Facts, prices: Mapping[str, float]) -> float:
    """USD an hour for the machines: the head and the dearest workers that max_workers allows.

    Each at its price on demand or its spot price now, whichever is more: a spot machine is charged the spot price, and
    that does not exceed the one on demand unless the file bids more.
    """
    file = facts.file
    spot = facts.spot_prices.answer or {}
    total, left = prices[file.head.instance_type], file.max_workers
    rows = [
        (
            max([prices[kind.instance_type], *(usd for (name, _), usd in spot.items() if name == kind.instance_type)]),
            kind,
        )
        for kind in file.workers
    ]
    for usd, kind in sorted(rows, key=lambda row: -row[0]):
        taken = min(kind.max_workers, left)
        total, left = total + taken * usd, left - taken
    return total


def besides(file: ClusterFile) -> float:
    """USD an hour for disks and public addresses of the head and of all workers, at their most."""
    head, *workers = (
        sum(disk_usd(int(d.get("VolumeSize", 0)), str(d.get("VolumeType", "")), file.region) for d in kind.disks)
        for kind in file.types
    )
    return head + file.max_workers * max(workers, default=0.0) + (1 + file.max_workers) * ADDRESS_USD
