"""The meter and the budget, with clocks, nodes and prices that the tests make up: no Ray, no money."""

import json
import random

import pytest

from data.errors import UserError
from tests.budget_lab import HEAD, HOUR, START, WORKER, Lab
from tune.budget import Budget, Node
from tune.prices import Kind, Price, PriceTable, load_prices


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
    line, warning = budget.quote(meter)
    assert line.startswith("0 USD: this machine's instance type is unknown")
    assert "CPU-seconds are counted" in line
    assert warning.startswith("warning: --budget-usd 1 never ends it")
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
