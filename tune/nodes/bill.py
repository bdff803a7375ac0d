"""What the machines of a cluster cost since its head was launched; kept in a file, since EC2 forgets what has ended.

Dated list prices, without disks, traffic and tax. Standard library only, as all of this folder.
"""

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final

_LEAST_SECONDS: Final = 60  # EC2 bills each machine for a minute at the least


@dataclass(frozen=True)
class Machine:
    """An instance of the cluster. `launched` and `seen` (last time that it was alive) are seconds since 1970."""

    id: str
    instance_type: str
    market: str
    launched: float
    seen: float
    alive: bool


class Prices:
    """USD an hour by the project's dated table: the newest row of a machine that is not of the future."""

    def __init__(self, rows: Iterable[dict[str, str]], region: str, today: str) -> None:
        rates: dict[tuple[str, str, str], tuple[str, float]] = {}
        for row in rows:
            key, dated = (row["instance_type"], row["region"], row["market"]), row["from"]
            if dated <= today and dated >= rates.get(key, ("", 0.0))[0]:
                rates[key] = (dated, float(row["usd_per_hour"]))
        self._rates, self._region = {key: rate for key, (_, rate) in rates.items()}, region

    @classmethod
    def read(cls, path: str, region: str) -> "Prices":
        with open(path, newline="", encoding="utf-8") as file:
            return cls(csv.DictReader(file), region, date.today().isoformat())

    def of(self, instance_type: str, market: str) -> float:
        """Too high rather than too low: spot without a dated price counts as on demand, a region without one as the
        dearest that is known, and a type without any as the dearest of all."""
        for kind in dict.fromkeys((market, "on-demand")):
            if (rate := self._rates.get((instance_type, self._region, kind))) is not None:
                return rate
        elsewhere = [rate for (one, _, _), rate in self._rates.items() if one == instance_type]
        return max(elsewhere or self._rates.values(), default=0.0)


@dataclass
class Ledger:
    """What is known of the cluster since the head's launch; kept in a file, since EC2 forgets what was terminated."""

    head: str
    started: float
    machines: dict[str, Machine]

    @classmethod
    def open(cls, file: Path, head: str, now: float) -> "Ledger":
        """As saved, if it was saved by this instance; a new instance begins anew."""
        try:
            saved = json.loads(file.read_text())
            if saved["head"] == head:
                machines = {one["id"]: Machine(**one) for one in saved["machines"]}
                return cls(head, min(saved["started"], now), machines)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or cut off by a crash: EC2 knows the launch, and most of the machines
        return cls(head, now, {})

    def save(self, file: Path) -> None:
        """Whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".new")
        machines = [asdict(one) for one in self.machines.values()]
        draft.write_text(json.dumps({"head": self.head, "started": self.started, "machines": machines}))
        os.replace(draft, file)

    def note(self, found: Iterable[Machine]) -> None:
        """Take in what EC2 shows. Machines that ended before this head's launch are an earlier cluster's.

        One that is not shown counts as ended, until it is shown alive: a list of EC2's may lack some.
        """
        seen = {one.id: one for one in found}
        gone = {name: replace(one, alive=False) for name, one in self.machines.items() if name not in seen}
        self.machines |= gone
        if self.head in seen:
            self.started = min(self.started, seen[self.head].launched)
        for one in seen.values():
            before = self.machines.get(one.id)
            ended_before = before is not None and not before.alive and not one.alive
            # The first sight of an end is the one that counts: later ones are only later.
            if not ended_before and (one.alive or one.seen >= self.started):
                self.machines[one.id] = one

    def usd(self, prices: Prices, now: float) -> float:
        """What all of them cost, those that ended up to when they were last seen."""
        total = 0.0
        for one in self.machines.values():
            billed = max((now if one.alive else one.seen) - one.launched, _LEAST_SECONDS)
            total += prices.of(one.instance_type, one.market) * billed / 3600
        return total

    def usd_per_hour(self, prices: Prices) -> float:
        """What those that are alive cost."""
        return sum(prices.of(one.instance_type, one.market) for one in self.machines.values() if one.alive)
