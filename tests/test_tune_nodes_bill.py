"""What EC2's lists leave out for a moment is billed on as soon as they show it again."""

from dataclasses import replace

import pytest

from tune.nodes.bill import Ledger, Machine, Prices

T0 = 1_800_000_000.0
ROW = {"instance_type": "g5.xlarge", "region": "us-west-2", "market": "spot", "usd_per_hour": "1", "from": "2020-01-01"}
PRICES = Prices([ROW], "us-west-2", "2026-01-01")
HEAD = Machine("i-head", "g5.xlarge", "spot", T0, T0, True)
WORKER = Machine("i-1", "g5.xlarge", "spot", T0, T0, True)


def test_a_machine_that_one_list_left_out_is_billed_on() -> None:
    ledger = Ledger("i-head", T0, {})
    ledger.note([HEAD, replace(WORKER, seen=T0 + 600)])
    ledger.note([replace(HEAD, seen=T0 + 610)])
    assert ledger.usd(PRICES, T0 + 3600) == pytest.approx(1 + 600 / 3600)
    ledger.note([replace(HEAD, seen=T0 + 620), replace(WORKER, seen=T0 + 620)])
    assert ledger.usd(PRICES, T0 + 3600) == pytest.approx(2)
    assert ledger.usd_per_hour(PRICES) == 2


def test_the_first_sight_of_an_end_counts() -> None:
    ledger = Ledger("i-head", T0, {})
    ledger.note([HEAD, WORKER])
    for later in (600, 700, 800):
        ledger.note([replace(HEAD, seen=T0 + later), replace(WORKER, seen=T0 + later, alive=False)])
    assert ledger.machines["i-1"].seen == T0 + 600
