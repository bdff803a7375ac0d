"""The checks of quotas, costs and spot prices: facts in, findings out."""

from dataclasses import replace

import pytest

from tests.preflightfacts import changed, facts, file, only
from tune.cloud import checksmoney
from tune.cloud.facts import Cost, Fact, Facts, Quota, Running
from tune.cloud.quotas import ON_DEMAND_P, ON_DEMAND_STANDARD, SPOT_G, SPOT_P, SPOT_P5, quota_of

__all__ = ["facts", "file"]


@pytest.mark.parametrize(
    ("name", "spot", "code"),
    [
        ("m6i.xlarge", False, ON_DEMAND_STANDARD),
        ("g6e.2xlarge", True, SPOT_G),
        ("gr6.4xlarge", True, SPOT_G),
        ("p3.2xlarge", True, SPOT_P),
        ("p4d.24xlarge", True, SPOT_P),
        ("p5.48xlarge", True, SPOT_P5),
        ("p5.48xlarge", False, ON_DEMAND_P),
        ("p6-b200.48xlarge", True, ""),
        ("inf2.xlarge", False, ""),
        ("is4gen.medium", False, ON_DEMAND_STANDARD),
        ("", False, ""),
    ],
)
def test_which_quota_a_type_counts_against(name: str, spot: bool, code: str) -> None:
    assert quota_of(name, spot=spot) == code


def test_a_family_without_a_known_quota_is_not_ok(facts: Facts) -> None:
    found = checksmoney.quotas(changed(facts, "g4dn.xlarge", "inf2.xlarge"))
    told = [finding for finding in found if finding.verdict == "warning"]
    assert len(told) == 2
    assert "could not check the quota of inf2.xlarge (spot)" in told[0].what


def test_the_most_vcpus_are_those_of_the_largest_workers(facts: Facts) -> None:
    head, *workers = facts.file.types
    spot, small = workers[0], replace(workers[-1], max_workers=2)
    assert checksmoney.most_vcpus([(4, head), (4, spot), (16, small)], 4) == 4 + 2 * 16 + 2 * 4
    assert checksmoney.most_vcpus([(4, spot)], 2) == 8
    assert checksmoney.most_vcpus([], 4) == 0


def test_machines_of_this_cluster_do_not_count_twice(facts: Facts) -> None:
    mine = replace(facts, running=Fact((Running("g6.xlarge", True, 60, "eagleray"),)))
    assert all(finding.verdict == "ok" for finding in checksmoney.quotas(mine))
    others = replace(facts, running=Fact((Running("g6.xlarge", True, 60, "other"),)))
    assert "room for 1" in only(checksmoney.quotas(others)).what


def test_without_any_room_for_spot_it_stops_and_without_the_fallback_it_goes(facts: Facts) -> None:
    def with_g(spot: float, on_demand: float) -> list[str]:
        quotas = {**facts.quotas, SPOT_G: Fact(Quota("", spot)), "L-DB2E81BA": Fact(Quota("", on_demand))}
        return [finding.verdict for finding in checksmoney.quotas(replace(facts, quotas=quotas))]

    assert sorted(with_g(16, 0)) == ["ok", "ok", "warning"]
    assert sorted(with_g(4, 16)) == ["ok", "ok", "warning"]
    assert sorted(with_g(0, 16)) == ["ok", "ok", "stop"]
    assert sorted(with_g(0, 0)) == ["ok", "stop", "stop"]


def test_the_most_that_an_hour_costs(facts: Facts) -> None:
    dear = replace(facts, on_demand={**facts.on_demand, "g5.xlarge": Fact(Cost(2.0, "AWS's price list"))})
    (found,) = checksmoney.cost(dear)
    # The head 1, four g5 at 2; five disks of 140 GB and five addresses.
    beside = 5 * 140 * 0.08 / 730 + 5 * 0.005
    assert checksmoney.besides(facts.file) == pytest.approx(beside)
    assert f"at most {9 + beside:.2f} USD an hour" in found.what
    assert "AWS's price list, the table" in found.what
    bid = replace(dear, spot_prices=Fact({("g5.xlarge", "us-west-2a"): 3.0}))
    assert "at most 13." in next(iter(checksmoney.cost(bid))).what
    tight = changed(dear, "--max-usd 30", "--max-usd 5")
    assert "the limit of 5 USD may be reached within the first hour" in only(checksmoney.cost(tight)).what


def test_spot_prices_by_zone(facts: Facts) -> None:
    found = {finding.what.partition(":")[0]: finding for finding in checksmoney.spot_prices(facts)}
    assert found["g6.xlarge"].what == "g6.xlarge: us-west-2b 0.290, us-west-2a 0.310 USD an hour now"
    assert found["g5.xlarge"].verdict == "warning"
