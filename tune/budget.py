"""What a search has cost so far, what it may cost, and when that is used up."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from data.checks import at_least, one_of
from data.errors import UserError
from tune.prices import MARKETS, SPOT, Kind, PriceTable

# EC2 bills Linux machines by the second from when they run, and each for a minute at the least.
_LEAST_SECONDS: Final = 60


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. `kind` is None where nobody said what it is; `since` is when it began to be billed
    (seconds since 1970)."""

    name: str
    kind: Kind | None
    since: float

    def billed_until(self, now: float) -> float:
        """The instant up to which it is billed if it ends at `now`: whole seconds, a minute at the least."""
        return self.since + max(_LEAST_SECONDS, math.ceil(now - self.since))


class Meter:
    """Cost of a cluster over the time of one search: every node that is there, the head included, busy or not.

    It knows what it reads: `nodes` tells the machines of the moment and `clock` the time (seconds since 1970), and each
    `read` charges all of them up to then, at the prices that held in each second between. A node that was there before
    the search is charged from the search's begin, one that left up to the last reading that saw it, at least for
    its first minute. Time between a kill and the resume is not charged: no search ran then.

    `slots` is how many trials the cluster runs at one time. Each running trial bears 1 / slots of the cluster's cost
    over the seconds that it ran, since all trials reserve alike (1 / running, should more run than that). So what a
    trial cost does not depend on how many others ran, and empty slots are nobody's: the trials' sum is never more
    than the whole.
    """

    def __init__(
        self,
        table: PriceTable,
        nodes: Callable[[], Sequence[Node]],
        *,
        clock: Callable[[], float] = time.time,
        slots: int = 1,
    ) -> None:
        self.slots = slots
        self.usd = 0.0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._table, self._list_nodes, self._clock = table, nodes, clock
        self._begun = self._now = clock()
        self._nodes: tuple[Node, ...] = ()
        self._unpriced: dict[str, str] = {}
        self._charged: dict[str, float] = {}  # node -> the instant up to which it is paid
        self._trials: dict[int, float] = {}

    def read(self, running: Iterable[int] = ()) -> float:
        """Charge what is due since the last reading and return the USD spent in all.

        `running` are the numbers of the trials that ran since then. Read after every epoch and at least once a second.
        """
        now = max(self._clock(), self._now)
        self.seconds += now - self._now
        self._now = now
        self._nodes = tuple(self._list_nodes())
        self._unpriced = {}
        due = 0.0
        for node in self._nodes:
            try:
                due += self._due(node, now)
            except UserError as error:  # a machine that joined later must not end the search in a traceback
                self._unpriced[node.name] = str(error)
                continue
            self._charged[node.name] = max(node.billed_until(now), self._charged.get(node.name, 0.0))
        self.usd += due
        trials = set(running)
        for trial in trials:
            self._trials[trial] = self._trials.get(trial, 0.0) + due / max(self.slots, len(trials))
        return self.usd

    def _due(self, node: Node, now: float) -> float:
        if node.kind is None:
            raise UserError(f"nobody said what machine {node.name} is; give --instance-type, or the node its label")
        begin = max(self._charged.get(node.name, 0.0), self._begun, node.since)
        return self._table.cost(node.kind, begin, node.billed_until(now))

    def forecast(self, seconds: float) -> float:
        """USD that the nodes of the last reading cost if they run so many seconds more; coming price jumps count."""
        return sum(self._due(node, self._now + max(seconds, 0.0)) for node in self._priced())

    def _priced(self) -> list[Node]:
        return [node for node in self._nodes if node.name not in self._unpriced]

    @property
    def usd_per_hour(self) -> float:
        """What the nodes of the last reading cost an hour, at the prices of that instant."""
        kinds = [node.kind for node in self._priced() if node.kind]
        return sum(self._table.at(kind, self._now).usd_per_hour for kind in kinds)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of the last reading."""
        return self._nodes

    @property
    def unpriced(self) -> dict[str, str]:
        """Nodes of the last reading whose price is not known, and why; they count as 0 USD."""
        return dict(self._unpriced)

    def cost_of(self, trial: int) -> float:
        """USD of one trial: its share of the cluster's cost over the seconds that it ran."""
        return self._trials.get(trial, 0.0)

    def add_cpu_seconds(self, seconds: float) -> None:
        """Count CPU time that a trial reported for an epoch."""
        self.cpu_seconds += seconds

    def state(self) -> dict[str, Any]:
        """All that a resumed search needs to go on counting, as JSON holds it."""
        return {
            "usd": self.usd,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "charged": self._charged,
            "trials": {str(trial): usd for trial, usd in self._trials.items()},
        }

    def summary(self) -> dict[str, float]:
        """For the report, JSON-ready: dollars, minutes of searching, CPU-seconds of training."""
        return {"usd": self.usd, "minutes": self.seconds / 60, "cpu_seconds": self.cpu_seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave before the search was broken off."""
        self.usd, self.seconds, self.cpu_seconds = state["usd"], state["seconds"], state["cpu_seconds"]
        self._charged = dict(state["charged"])
        self._trials = {int(trial): usd for trial, usd in state["trials"].items()}

    def price_lines(self) -> list[str]:
        """What each kind of the nodes of the last reading costs, and from when that price is."""
        lines = []
        for kind, count in sorted(Counter(node.kind for node in self._priced() if node.kind).items()):
            price = self._table.at(kind, self._now)
            line = f"{count} x {kind}: {price.usd_per_hour:g} USD an hour, price of {price.date}"
            if kind.market == SPOT and price.kind.market != SPOT:
                line += " on demand, an upper bound: no dated spot price is known"
            lines.append(line + (f" ({price.note})" if price.note else ""))
        return lines


@dataclass(frozen=True)
class Budget:
    """What a search may cost in money and time, and what this machine is where it is rented."""

    budget_usd: float = 0.0
    """Stop when the search has cost so many US dollars, by the prices of a dated table; 0: no limit. An epoch that
    cannot be paid for is not begun. With --resume a new limit takes the place of the old one."""
    budget_minutes: float = 0.0
    """Stop after this many minutes of searching, resumed ones included; reading images before and scoring after are not
    counted; 0: no limit. With --resume a new limit takes the place of the old one."""
    prices: str = ""
    """CSV of your own prices: instance_type,region,market,usd_per_hour,from,note. Its rows replace the built-in ones of
    the same machine, region and market; several dates are a price that changes."""
    instance_type: str = ""
    """EC2 type of this machine, if it is one; nodes of a cluster say theirs by the label eagleray.instance-type."""
    region: str = "us-east-1"
    """AWS region whose prices hold for nodes that have no label of their own."""
    market: Literal["on-demand", "spot"] = "on-demand"
    """How the nodes are rented that have no label of their own."""

    def __post_init__(self) -> None:
        at_least(self, budget_usd=0, budget_minutes=0)
        one_of(self, market=MARKETS)

    def exhausted(self, meter: Meter) -> str:
        """Why the running epochs are to be the last ones, as of the meter's last reading; "" while all may go on."""
        if self.budget_usd and meter.usd >= self.budget_usd:
            return f"the budget of {self.budget_usd:g} USD is spent ({meter.usd:.4g} USD)"
        if self.budget_minutes and meter.seconds >= self.budget_minutes * 60:
            return f"the {self.budget_minutes:g} minutes of the budget are over"
        if self.budget_usd and meter.unpriced and len(meter.nodes) > 1:
            return f"what the search costs is no longer known: {next(iter(meter.unpriced.values()))}"
        return ""

    def refuses(self, meter: Meter, seconds: float) -> str:
        """Why an epoch that is expected to take so many seconds is not to be begun now; "" where it can be paid for."""
        if reason := self.exhausted(meter):
            return reason
        if self.budget_usd and meter.usd + meter.forecast(seconds) > self.budget_usd:
            rest = self.budget_usd - meter.usd
            return f"the next epoch would cost more than the {rest:.2g} USD left of {self.budget_usd:g}"
        if self.budget_minutes and meter.seconds + seconds > self.budget_minutes * 60:
            return f"the next epoch would not end within the {self.budget_minutes:g} minutes of the budget"
        return ""

    def quote(self, meter: Meter) -> list[str]:
        """Lines for before the start: nodes with their dated prices, USD an hour, the limit and what it buys.

        Reads the meter. `UserError` where a limit in USD could not be kept, since the price of a machine is not known.
        """
        meter.read()
        unpriced = meter.unpriced
        if unpriced and (self.instance_type or (self.budget_usd and len(meter.nodes) > 1)):
            raise UserError(next(iter(unpriced.values())))
        timed = [f"limit {self.budget_minutes:g} minutes of searching, {meter.seconds / 60:.1f} of them used"]
        timed = timed if self.budget_minutes else []
        if len(unpriced) == len(meter.nodes):
            never = f"warning: --budget-usd {self.budget_usd:g} never ends it here: give --budget-minutes"
            return [_FREE, *([never] if self.budget_usd else []), *timed]
        lines = [*meter.price_lines(), *(f"counted as 0 USD: {reason}" for reason in unpriced.values())]
        rate = meter.usd_per_hour
        total = f"{rate:.4g} USD an hour in all, computed from a dated price table, without disks, traffic and tax"
        lines.append(f"{total}; nodes that join later are added")
        if self.budget_usd and meter.usd >= self.budget_usd and meter.seconds < 1:
            raise UserError(
                f"--budget-usd {self.budget_usd:g} does not pay for the first minute of these machines, which is "
                f"billed whole and costs {meter.usd:.4g} USD; give more"
            )
        if self.budget_usd:
            bought = _duration((self.budget_usd - meter.usd) / rate * 3600) if rate else "no end of time"
            spent = f", of which {meter.usd:.4g} are spent" if meter.usd else ""
            lines.append(f"limit {self.budget_usd:g} USD{spent}: buys {bought} of these nodes")
        return lines + timed


_FREE: Final = "0 USD: this machine's instance type is unknown (--instance-type says it); CPU-seconds are counted"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
