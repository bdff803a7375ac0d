"""A made-up cluster for the tests of the meter and the budget: its nodes, prices and clock."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from tune.budget import Meter, Node
from tune.prices import Kind, Price, PriceTable

HOUR = 3600.0
START = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
HEAD, WORKER = Kind("head.small", "moon"), Kind("gpu.big", "moon", "spot")
TABLE = PriceTable((Price(HEAD, 1.0, 0.0), Price(Kind("gpu.big", "moon"), 10.0, 0.0)))


@dataclass
class Lab:
    """A made-up cluster: `nodes` may change between readings, and so may the time."""

    table: PriceTable = TABLE
    now: float = START
    nodes: list[Node] = field(default_factory=lambda: [Node("head", HEAD, START - HOUR)])

    def meter(self, slots: int = 1) -> Meter:
        return Meter(self.table, lambda: self.nodes, clock=lambda: self.now, slots=slots)

    def passes(self, seconds: float) -> None:
        self.now += seconds
