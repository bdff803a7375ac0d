"""Where a budget ends a search, simulated: nodes come and go and prices jump, and the cap holds."""

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from tests.budget_lab import HEAD, HOUR, START, WORKER, Lab
from tune.budget import Budget, Node
from tune.prices import Price, PriceTable


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


def simulated(seed: int, *, forecast: bool, steady: bool = False) -> Outcome:
    """A search on a cluster whose nodes come and go and whose prices jump, run until the budget stops it.

    In a `steady` one no node comes or goes, and epochs take as long as was expected. As the search does, the meter is
    read after each epoch and each second, and an exhausted budget begins no epoch.
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
        if not steady and chance.random() < 0.01 and len(lab.nodes) < 6:
            lab.nodes = [*lab.nodes, Node(f"worker {lab.now}", WORKER, lab.now)]
        if not steady and chance.random() < 0.01 and len(lab.nodes) > 1:
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


def test_a_search_that_begins_no_epoch_it_could_not_pay_stays_below_the_cap_where_nothing_unforeseen_comes() -> None:
    """Price jumps that the table has are foreseen. Without the forecast nearly all of these searches overspend."""
    for seed in range(25):
        search = simulated(seed, forecast=True, steady=True)
        assert search.spent == pytest.approx(search.billed)
        assert search.spent <= search.limit
    careless = [simulated(seed, forecast=False, steady=True) for seed in range(25)]
    assert sum(search.spent > search.limit for search in careless) > 20


@pytest.mark.parametrize("seed", range(25))
def test_what_is_unforeseen_costs_a_careful_search_one_step_at_the_most(seed: int) -> None:
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
