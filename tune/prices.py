"""What an hour of a machine costs: a dated price table, this package's own or one that the user gives."""

import csv
import difflib
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from data import store
from data.errors import UserError

ON_DEMAND: Final = "on-demand"
SPOT: Final = "spot"
MARKETS: Final = (ON_DEMAND, SPOT)
_COLUMNS: Final = ("instance_type", "region", "market", "usd_per_hour", "from", "note")
_NAMES: Final = ", ".join(_COLUMNS)
_OURS: Final = os.path.join(os.path.dirname(__file__), "prices.csv")


@dataclass(frozen=True, order=True)
class Kind:
    """What a price depends on besides the date."""

    instance_type: str
    region: str
    market: str = ON_DEMAND

    def __str__(self) -> str:
        return f"{self.instance_type} ({self.market}, {self.region})"


@dataclass(frozen=True)
class Price:
    """A row of the table: `usd_per_hour` holds from `since` (seconds since 1970, UTC) until the kind's next row."""

    kind: Kind
    usd_per_hour: float
    since: float
    note: str = ""

    @property
    def date(self) -> str:
        """The day, in UTC, that the price is from."""
        return datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d")


class PriceTable:
    """Prices by kind and date. Several rows of a kind with different dates are price jumps at those instants."""

    def __init__(self, prices: tuple[Price, ...]) -> None:
        self._rows: dict[Kind, list[Price]] = {}
        for price in sorted(prices, key=lambda price: price.since):
            self._rows.setdefault(price.kind, []).append(price)

    def at(self, kind: Kind, when: float) -> Price:
        """The price at a time (seconds since 1970): the latest row that is not after it.

        Where no spot price is known by then the on-demand price stands in for it, an upper bound: spot is never dearer
        unless one bids more. The row that comes back says by its own market which of the two it is. `UserError` where
        the table has no row for the kind.
        """
        markets = (kind.market,) if kind.market == ON_DEMAND else (kind.market, ON_DEMAND)
        for market in markets:
            rows = self._rows.get(Kind(kind.instance_type, kind.region, market), [])
            begun = [price for price in rows if price.since <= when]
            if begun:
                return begun[-1]
        raise UserError(self._unknown(kind, when))

    def cost(self, kind: Kind, begin: float, end: float) -> float:
        """USD for one machine of the kind from `begin` to `end` (seconds since 1970), price jumps between included."""
        if end <= begin:
            return 0.0
        times = [begin, *sorted({t for t in self._jumps(kind) if begin < t < end}), end]
        return sum(self.at(kind, a).usd_per_hour * (b - a) / 3600 for a, b in pairwise(times))

    def _jumps(self, kind: Kind) -> Iterator[float]:
        for market in MARKETS:
            yield from (p.since for p in self._rows.get(Kind(kind.instance_type, kind.region, market), []))

    def _unknown(self, kind: Kind, when: float) -> str:
        remedy = "give a table with a row for it by --prices"
        types = sorted({known.instance_type for known in self._rows})
        if kind.instance_type not in types:
            near = difflib.get_close_matches(kind.instance_type, types, n=4, cutoff=0.4) or types[:4]
            return f"no price is known of instance type {kind.instance_type!r} (near: {', '.join(near)}); {remedy}"
        regions = sorted({known.region for known in self._rows if known.instance_type == kind.instance_type})
        if kind.region not in regions:
            return (
                f"no price is known of {kind.instance_type} in region {kind.region!r} "
                f"(known: {', '.join(regions)}); {remedy}, or name the right region by --region"
            )
        day = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d")
        return f"no price of {kind} is known as early as {day}; {remedy}, with an earlier date in its column from"


def load_prices(path: str = "") -> PriceTable:
    """The package's table; with `path` (a file or an s3:// address) that table's rows in place of those of its kinds.

    `UserError` with file, row and field where a row cannot be understood.
    """
    ours = _read(_OURS)
    theirs = _read(path) if path else ()
    replaced = {price.kind for price in theirs}
    return PriceTable((*(price for price in ours if price.kind not in replaced), *theirs))


def _read(path: str) -> tuple[Price, ...]:
    try:
        text = store.read(path).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: not a CSV in UTF-8 ({error}); write one with columns {', '.join(_COLUMNS)}"
        ) from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if missing := [name for name in _COLUMNS if name not in header and name != "note"]:
        raise UserError(f"{path}: no column {', '.join(missing)}; a price table has {_NAMES}")
    prices: list[Price] = []
    for number, cells in enumerate(rows[1:], start=2):
        if any(cell.strip() for cell in cells):
            fields = dict.fromkeys(_COLUMNS, "") | dict(zip(header, map(str.strip, cells), strict=False))
            prices.append(_price(f"{path}, row {number}", fields))
    if not prices:
        raise UserError(f"{path}: a header and no prices; write a row for each kind of machine")
    seen: set[tuple[Kind, float]] = set()
    for price in prices:
        if (price.kind, price.since) in seen:
            raise UserError(f"{path}: two prices of {price.kind} from {price.date}; delete one, or correct its date")
        seen.add((price.kind, price.since))
    return tuple(prices)


def _price(where: str, fields: dict[str, str]) -> Price:
    for name in ("instance_type", "region"):
        if not fields[name]:
            raise UserError(f"{where}, {name}: empty; write one, as g5.xlarge in us-east-1")
    if fields["market"] not in MARKETS:
        raise UserError(f"{where}, market: {fields['market']!r}; write {' or '.join(MARKETS)}")
    try:
        usd = float(fields["usd_per_hour"])
    except ValueError:
        usd = math.nan
    if not (math.isfinite(usd) and usd >= 0):
        raise UserError(f"{where}, usd_per_hour: {fields['usd_per_hour']!r}; write US dollars an hour, as 0.526")
    kind = Kind(fields["instance_type"], fields["region"], fields["market"])
    return Price(kind, usd, _instant(where, fields["from"]), fields["note"])


def _instant(where: str, text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{where}, from: {text!r}; write the UTC date that the price holds from, as 2026-01-19"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
