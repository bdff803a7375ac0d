"""The dated price table: what holds when, price jumps, spot, and tables that cannot be read."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from data.errors import UserError
from tune.prices import Kind, load_prices

HEADER = "instance_type,region,market,usd_per_hour,from,note\n"
NOW = datetime(2026, 11, 21, tzinfo=UTC).timestamp()


def instant(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def written(tmp_path: Path, *rows: str, header: str = HEADER) -> str:
    path = tmp_path / "prices.csv"
    path.write_text(header + "\n".join(rows) + "\n")
    return str(path)


def test_the_own_table_knows_the_usual_machines_and_dates_every_price() -> None:
    table = load_prices()
    for name in ("g4dn.xlarge", "g5.2xlarge", "g6.xlarge", "m5.large", "m7i.xlarge", "t3.medium", "p3.2xlarge"):
        for region in ("us-east-1", "us-west-2"):
            price = table.at(Kind(name, region), NOW)
            assert 0.02 < price.usd_per_hour < 5
            assert "2022" <= price.date < "2027"
            assert price.note
    assert table.at(Kind("g5.xlarge", "us-east-1"), NOW).usd_per_hour == 1.006


def test_the_price_is_that_of_the_latest_row_not_after_the_time(tmp_path: Path) -> None:
    rows = ("a1.big,moon,on-demand,3.0,2026-02-01T12:00,", "a1.big,moon,on-demand,1.0,2026-01-01,")
    table = load_prices(written(tmp_path, *rows))
    kind, jump = Kind("a1.big", "moon"), instant("2026-02-01T12:00")
    assert table.at(kind, jump - 1).usd_per_hour == 1
    assert table.at(kind, jump).usd_per_hour == 3
    assert table.cost(kind, jump - 3600, jump + 1800) == pytest.approx(1.0 + 1.5)
    assert table.cost(kind, jump, jump) == 0


def test_spot_without_a_dated_price_costs_as_on_demand_and_says_so(tmp_path: Path) -> None:
    rows = ("a1.big,moon,on-demand,3.0,2026-01-01,", "a1.big,moon,spot,1.0,2026-03-01,")
    table = load_prices(written(tmp_path, *rows))
    kind, known = Kind("a1.big", "moon", "spot"), instant("2026-03-01")
    assert (table.at(kind, known - 1).usd_per_hour, table.at(kind, known - 1).kind.market) == (3.0, "on-demand")
    assert (table.at(kind, known).usd_per_hour, table.at(kind, known).kind.market) == (1.0, "spot")
    assert table.cost(kind, known - 3600, known + 3600) == pytest.approx(4.0)


def test_a_table_of_ones_own_replaces_the_prices_of_its_machines_only(tmp_path: Path) -> None:
    table = load_prices(written(tmp_path, "g5.xlarge,us-east-1,on-demand,0.5,2020-01-01,negotiated"))
    assert table.at(Kind("g5.xlarge", "us-east-1"), NOW).usd_per_hour == 0.5
    assert table.at(Kind("g5.xlarge", "us-west-2"), NOW).usd_per_hour == 1.006


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Kind("g5.xlrage", "us-east-1"), r"'g5\.xlrage' \(near: g5\.xlarge.*--prices"),
        (Kind("g5.xlarge", "mars-1"), r"g5\.xlarge in region 'mars-1' \(known: eu-west-1, us-east-1.*--region"),
    ],
)
def test_an_unknown_machine_is_named_with_its_nearest(kind: Kind, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_prices().at(kind, NOW)


def test_a_time_before_the_first_price_is_refused() -> None:
    with pytest.raises(UserError, match="as early as 2001-01-01"):
        load_prices().at(Kind("g5.xlarge", "us-east-1"), instant("2001-01-01"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",moon,spot,1,2026-01-01,", "row 2, instance_type: empty"),
        ("a1.big,,spot,1,2026-01-01,", "row 2, region: empty"),
        ("a1.big,moon,reserved,1,2026-01-01,", "row 2, market: 'reserved'; write on-demand or spot"),
        ("a1.big,moon,spot,cheap,2026-01-01,", "row 2, usd_per_hour: 'cheap'"),
        ("a1.big,moon,spot,-1,2026-01-01,", "row 2, usd_per_hour: '-1'"),
        ("a1.big,moon,spot,nan,2026-01-01,", "row 2, usd_per_hour: 'nan'"),
        ("a1.big,moon,spot,1,yesterday,", "row 2, from: 'yesterday'; write the UTC date"),
        ("a1.big,moon,spot,1,2026-01-01,\na1.big,moon,spot,2,2026-01-01,", "two prices of a1.big"),
        ("", "a header and no prices"),
        ('"a1.big', "not a CSV"),
    ],
)
def test_a_row_that_cannot_be_understood_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_prices(written(tmp_path, row))
    assert "prices.csv" in str(error.value)


def test_a_table_without_a_column_or_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column usd_per_hour"):
        load_prices(written(tmp_path, "a,b,spot", header="instance_type,region,market,from\n"))
    with pytest.raises(UserError, match=r"none\.csv"):
        load_prices(str(tmp_path / "none.csv"))
