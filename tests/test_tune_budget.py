"""The meter and the budget, with clocks, nodes and prices that the tests make up: no Ray, no money."""

import json
import math
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from ray._private import label_utils

from data.errors import UserError
from tune.budget import Budget, Meter, Node
from tune.nodeprices import INSTANCE_TYPE, MARKET, REGION, SINCE, ClusterNodes
from tune.prices import Kind, Price, PriceTable, load_prices

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


def test_every_node_costs_its_price_by_the_second_from_the_begin_of_the_search() -> None:
    lab = Lab()
    meter = lab.meter()
    lab.passes(HOUR)
    assert meter.read() == pytest.approx(1.0)
    lab.nodes.append(Node("worker", WORKER, lab.now))
    meter.read()
    lab.passes(HOUR / 2)
    assert meter.read() == pytest.approx(1.5 + 5)
    assert meter.usd_per_hour == 11
    assert meter.seconds == 1.5 * HOUR


def test_a_node_costs_a_minute_at_the_least_and_then_whole_seconds() -> None:
    lab = Lab(nodes=[])
    meter = lab.meter()
    lab.nodes = [Node("worker", WORKER, lab.now)]
    lab.passes(3)
    meter.read()
    assert meter.usd * 360 == pytest.approx(60)
    lab.passes(57.5)  # 60.5 seconds in all
    assert meter.read() * 360 == pytest.approx(61)
    lab.nodes = []
    lab.passes(HOUR)
    assert meter.read() * 360 == pytest.approx(61)


def test_reading_often_costs_no_more_than_reading_once() -> None:
    once, often = Lab(), Lab()
    one, many = once.meter(), often.meter()
    for _ in range(1000):
        often.passes(0.37)
        many.read()
    once.passes(370)
    assert many.usd == pytest.approx(one.read(), rel=1 / 300)


def test_a_price_jump_counts_from_its_instant() -> None:
    prices = (Price(HEAD, 1.0, 0.0), Price(HEAD, 7.0, START + 900))
    lab = Lab(PriceTable(prices))
    meter = lab.meter()
    assert meter.read() == 0
    assert meter.forecast(1800) == pytest.approx(0.25 + 7 / 4)
    lab.passes(1800)
    assert meter.read() == pytest.approx(0.25 + 7 / 4)
    assert meter.usd_per_hour == 7


def test_a_clock_that_goes_back_takes_nothing_back() -> None:
    lab = Lab()
    meter = lab.meter()
    lab.passes(HOUR)
    meter.read()
    lab.passes(-HOUR / 2)
    assert meter.read() == pytest.approx(1.0)
    assert meter.seconds == HOUR


def test_a_resumed_search_goes_on_counting_and_the_pause_is_free() -> None:
    lab = Lab()
    meter = lab.meter()
    lab.passes(HOUR)
    meter.read(running=(0,))
    meter.add_cpu_seconds(12.5)
    state = json.loads(json.dumps(meter.state()))
    lab.passes(5 * HOUR)
    again = lab.meter()
    again.restore(state)
    assert again.read() == pytest.approx(1.0)
    lab.passes(HOUR)
    again.read(running=(0, 1))
    assert [again.usd, again.cpu_seconds, again.seconds] == pytest.approx([2.0, 12.5, 2 * HOUR])
    assert [again.cost_of(0), again.cost_of(1)] == pytest.approx([1.5, 0.5])


def test_the_trials_never_cost_more_than_the_whole() -> None:
    lab, chance = Lab(), random.Random(3)
    meter = lab.meter(slots=3)
    for _ in range(200):
        lab.passes(chance.uniform(0, 90))
        if chance.random() < 0.2:
            lab.nodes.append(Node(f"node {len(lab.nodes)}", WORKER, lab.now - chance.uniform(0, 30)))
        meter.read(running=chance.sample(range(8), chance.randint(0, 5)))
    assert 0 < sum(meter.cost_of(trial) for trial in range(8)) <= meter.usd
    assert meter.cost_of(99) == 0


def test_a_trial_alone_on_a_third_of_the_cluster_bears_a_third() -> None:
    lab = Lab()
    meter = lab.meter(slots=3)
    lab.passes(3 * HOUR)
    meter.read(running=(4,))
    assert meter.cost_of(4) == pytest.approx(1.0)


# The limit


@dataclass(frozen=True)
class Step:
    """An epoch of a trial that is under way, in one of the places that trials run in."""

    place: int
    ends: float
    spent_before: float


@dataclass(frozen=True)
class Outcome:
    """Of a search that its budget ended: USD by the meter and by the bill, the limit, and what the dearest of the
    epochs that ran last cost the cluster."""

    spent: float
    billed: float
    limit: float
    step: float


def simulated(seed: int, *, forecast: bool) -> Outcome:
    """A search on a cluster whose nodes come and go and whose prices jump, run until the budget stops it.

    As the search does: the meter is read after each epoch and each second, an exhausted budget begins no epoch.
    """
    chance = random.Random(seed)
    changes = {
        HEAD: [(0.0, 1.0), (START + chance.uniform(0, 900), chance.uniform(0.1, 30))],
        WORKER: [(0.0, 10.0), *((START + chance.uniform(0, 3000), chance.uniform(0.5, 40)) for _ in range(4))],
    }
    lab = Lab(PriceTable(tuple(Price(kind, usd, since) for kind, rows in changes.items() for since, usd in rows)))
    meter, budget = lab.meter(), Budget(budget_usd=chance.uniform(0.5, 20))
    places = set(range(chance.randint(1, 4)))
    steps: list[Step] = []
    seen: dict[str, tuple[Node, float, float]] = {}  # node, from when and until when it was in the cluster
    while True:
        for place in sorted(places - {step.place for step in steps}):
            length = chance.choice([0.4, 7.3, 61.0, 240.0]) * chance.uniform(0.5, 1.5)
            if budget.refuses(meter, length) if forecast else budget.exhausted(meter):
                places.discard(place)
            else:
                steps.append(Step(place, lab.now + length, meter.usd))
        if not steps:
            break
        lab.now = min(lab.now + 1, *(step.ends for step in steps), math.inf)
        if chance.random() < 0.01 and len(lab.nodes) < 6:
            lab.nodes = [*lab.nodes, Node(f"worker {lab.now}", WORKER, lab.now)]
        if chance.random() < 0.01 and len(lab.nodes) > 1:
            lab.nodes = lab.nodes[:-1]
        for node in lab.nodes:
            seen[node.name] = node, max(node.since, START), lab.now
        meter.read({step.place for step in steps})
        last, steps = steps, [step for step in steps if step.ends > lab.now]
    billed = sum(bill(changes[node.kind], begin, end, node.since) for node, begin, end in seen.values() if node.kind)
    return Outcome(meter.usd, billed, budget.budget_usd, max(meter.usd - step.spent_before for step in last))


def bill(changes: list[tuple[float, float]], begin: float, end: float, since: float) -> float:
    """USD of one node by another way than the meter's: the whole interval at once, price after price."""
    rows = [*sorted(changes), (math.inf, 0.0)]
    end = max(since + math.ceil(end - since), since + 60)
    return sum(
        usd * max(0.0, min(end, until) - max(begin, since_price)) / HOUR
        for (since_price, usd), (until, _) in pairwise(rows)
    )


@pytest.mark.parametrize("seed", range(25))
def test_spend_never_passes_the_cap_by_more_than_one_step(seed: int) -> None:
    """The project's promise about money: nodes come and go and prices jump in the middle of an epoch."""
    search = simulated(seed, forecast=False)
    assert search.spent == pytest.approx(search.billed)
    assert search.limit <= search.billed <= search.limit + search.step


@pytest.mark.parametrize("seed", range(25))
def test_neither_does_a_search_that_begins_no_epoch_it_could_not_pay(seed: int) -> None:
    search = simulated(seed, forecast=True)
    assert search.spent == pytest.approx(search.billed)
    assert search.billed <= search.limit + search.step


def test_a_forecast_keeps_the_spending_below_the_cap_where_nothing_unforeseen_joins() -> None:
    prices = (Price(HEAD, 1.0, 0.0), Price(HEAD, 30.0, START + 1000))
    lab = Lab(PriceTable(prices))
    meter, budget = lab.meter(), Budget(budget_usd=2.0)
    reason = ""
    while not reason:
        lab.passes(50)
        meter.read((0,))
        reason = budget.refuses(meter, 50)
    assert "the next epoch would cost more than the" in reason
    assert 2.0 - 30 * 50 / HOUR < meter.usd <= 2.0


def test_minutes_end_a_search_as_money_does() -> None:
    lab = Lab()
    meter, budget = lab.meter(), Budget(budget_minutes=2)
    lab.passes(100)
    meter.read()
    assert budget.exhausted(meter) == ""
    assert budget.refuses(meter, 10) == ""
    assert "within the 2 minutes" in budget.refuses(meter, 30)
    lab.passes(20)
    meter.read()
    assert budget.exhausted(meter) == "the 2 minutes of the budget are over"


def test_no_limit_ends_nothing() -> None:
    lab = Lab()
    meter = lab.meter()
    lab.passes(1e6)
    meter.read()
    assert Budget().refuses(meter, 1e6) == ""


@pytest.mark.parametrize("settings", [{"budget_usd": -1}, {"budget_minutes": math.nan}, {"market": "reserved"}])
def test_a_budget_refuses_what_makes_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Budget(**settings)


# What is said before the start


def test_the_quote_names_nodes_prices_dates_and_what_the_limit_buys() -> None:
    lab = Lab(nodes=[Node("head", HEAD, 0), Node("a", WORKER, 0), Node("b", WORKER, 0)])
    lines = Budget(budget_usd=42).quote(lab.meter())
    assert lines == [
        "2 x gpu.big (spot, moon): 10 USD an hour, price of 1970-01-01 on demand, an upper bound: "
        "no dated spot price is known",
        "1 x head.small (on-demand, moon): 1 USD an hour, price of 1970-01-01",
        "21 USD an hour in all, computed from a dated price table, without disks, traffic and tax; "
        "nodes that join later are added",
        "limit 42 USD: buys 2 h 0 min of these nodes",
    ]


def test_a_laptop_costs_nothing_and_counts_cpu_seconds() -> None:
    lab = Lab(nodes=[Node("laptop", None, START)])
    meter, budget = lab.meter(), Budget(budget_usd=1)
    (line,) = budget.quote(meter)
    assert line.startswith("0 USD: this machine's instance type is unknown")
    assert "CPU-seconds are counted" in line
    assert "--budget-usd 1 never ends it" in line
    lab.passes(1000 * HOUR)
    meter.add_cpu_seconds(3)
    assert (meter.read(running=(0,)), meter.cost_of(0), meter.cpu_seconds) == (0, 0, 3)
    assert budget.exhausted(meter) == ""


def test_a_limit_that_could_not_be_kept_is_refused_before_the_start() -> None:
    lab = Lab(nodes=[Node("head", HEAD, START), Node("stranger", None, START)])
    with pytest.raises(UserError, match="what machine stranger is"):
        Budget(budget_usd=1).quote(lab.meter())
    assert "counted as 0 USD: nobody said" in "\n".join(Budget().quote(lab.meter()))
    mistyped = Lab(load_prices(), nodes=[Node("here", Kind("g5.xlage", "us-east-1"), START)])
    with pytest.raises(UserError, match=r"'g5\.xlage' \(near: g5\.xlarge"):
        Budget(instance_type="g5.xlage").quote(mistyped.meter())


def test_a_node_of_unknown_price_that_joins_later_ends_a_search_with_a_limit() -> None:
    lab = Lab()
    meter, budget = lab.meter(), Budget(budget_usd=100)
    budget.quote(meter)
    lab.nodes.append(Node("stranger", Kind("x9.huge", "moon"), START))
    lab.passes(10)
    meter.read()
    assert "no longer known: no price is known of instance type 'x9.huge'" in budget.exhausted(meter)
    assert Budget().exhausted(meter) == ""


# Which nodes there are


def cluster(labels: dict[str, str], budget: Budget | None = None) -> Node:
    rays = [{"NodeID": "n", "Alive": True, "Labels": labels}, {"NodeID": "gone", "Alive": False, "Labels": {}}]
    (node,) = ClusterNodes(budget or Budget(), rays_nodes=lambda: rays, clock=lambda: START)()
    return node


def test_nodes_say_by_labels_what_they_are() -> None:
    labels = {INSTANCE_TYPE: "g5.xlarge", REGION: "us-west-2", MARKET: "spot", SINCE: str(int(START) - 90)}
    assert cluster(labels) == Node("n", Kind("g5.xlarge", "us-west-2", "spot"), START - 90)
    rays_own = {INSTANCE_TYPE: "g5.xlarge", "ray.io/availability-region": "eu-west-1", "ray.io/market-type": "spot"}
    assert cluster(rays_own).kind == Kind("g5.xlarge", "eu-west-1", "spot")


def test_flags_say_it_for_a_machine_without_labels() -> None:
    assert cluster({}) == Node("n", None, START)
    rented = Budget(instance_type="m5.large", region="eu-west-1", market="spot")
    assert cluster({}, rented).kind == Kind("m5.large", "eu-west-1", "spot")
    assert cluster({INSTANCE_TYPE: "g5.xlarge", MARKET: "on-demand"}, rented).kind == Kind("g5.xlarge", "eu-west-1")


def test_ray_takes_these_labels() -> None:
    for key, value in {
        INSTANCE_TYPE: "g4dn.12xlarge",
        REGION: "eu-west-1",
        MARKET: "on-demand",
        SINCE: "1795000",
    }.items():
        assert label_utils.validate_label_key(key) is None
        label_utils.validate_label_value(value)
