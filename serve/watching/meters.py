"""What the endpoint counts: the meters by name and label, and a tally of them that is cheap to write into.

A call of Ray's metrics costs about 2 microseconds, and a request would need a dozen. So a replica counts in plain
Python, and hands the sums on about every second (`observer.py`). Ray's own `Histogram` is not used: it takes one value
at a time, its node agent replays each of them in Python, and rounds the sum to the middle of the buckets (Ray 2.60). A
histogram here is what Prometheus makes of one: a counter for each bucket, cumulative, with the label `le`.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, Protocol

from models.confidences import BINS

_EVERY_BIN: Final = tuple((edge + 1) / BINS for edge in range(BINS))
# Half as much again from one to the next, so that a quantile read from them is at most that far off.
_SECONDS: Final = (
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 120.0),
)
# Ray's counter refuses to count 0, but a bucket that is missing would make `histogram_quantile` guess. This is the
# smallest number that is not 0: any sum with it is exactly what it was.
_NOTHING: Final = 5e-324


@dataclass(frozen=True, eq=False)
class Meter:
    """One measured thing. `eq=False`: meters are compared by identity, which is what makes a tally's keys cheap."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram: the upper edges of its buckets, without the last one, which has none."""

    def series(self) -> dict[str, tuple[str, ...]]:
        """The counters or the gauge behind it: name -> labels."""
        if self.kind != "histogram":
            return {self.name: self.labels}
        buckets = {f"{self.name}_bucket": (*self.labels, "le")}
        return {**buckets, f"{self.name}_sum": self.labels, f"{self.name}_count": self.labels}


REQUESTS: Final = Meter(
    "eagleray_serve_requests",
    "counter",
    "Requests answered, 499 where the client went before it had sent all",
    ("model", "route", "code", "method"),
)
CALLERS: Final = Meter("eagleray_serve_key_requests", "counter", "Requests by the name of their key", ("key", "code"))
LATENCY: Final = Meter(
    "eagleray_serve_latency_seconds",
    "histogram",
    "Time from a request's arrival to the answer's last byte; answers is 2xx, 4xx and so on",
    ("route", "model", "answers"),
    _SECONDS,
)
RECEIVED: Final = Meter("eagleray_serve_received_bytes", "counter", "Bytes of requests' bodies", ("route",))
IMAGES: Final = Meter("eagleray_serve_images", "counter", "Images labelled", ("model", "label"))
FAILURES: Final = Meter("eagleray_serve_failures", "counter", "Images without a label, by reason", ("model", "code"))
CONFIDENCE: Final = Meter(
    "eagleray_serve_confidence", "histogram", "Probability of the answered label, 0 to 1", ("model",), _EVERY_BIN
)
BATCH: Final = Meter(
    "eagleray_serve_batch_images",
    "histogram",
    "Images that went through the network together",
    (),
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128),
)
NETWORK: Final = Meter("eagleray_serve_network_seconds", "counter", "Time that the network ran, decoding included")
WAITED: Final = Meter(
    "eagleray_serve_waited_seconds", "counter", "Time that images waited for the network, summed over the images"
)
WAITING: Final = Meter("eagleray_serve_waiting_images", "gauge", "Images that wait for the network now")
DRIFT: Final = Meter(
    "eagleray_serve_confidence_drift",
    "gauge",
    "Total variation distance between the confidences served and those on the validation images, 0 to 1",
    ("model",),
)
DRIFT_BY_CHANCE: Final = Meter(
    "eagleray_serve_confidence_drift_by_chance",
    "gauge",
    "What that distance stays below in 99 of 100 cases where nothing has changed",
    ("model",),
)

METERS: Final = (
    *(REQUESTS, CALLERS, LATENCY, RECEIVED, IMAGES, FAILURES, CONFIDENCE, BATCH, NETWORK, WAITED, WAITING),
    *(DRIFT, DRIFT_BY_CHANCE),
)

Labels = tuple[str, ...]
"""The values of a meter's labels, in its order."""


class Sink(Protocol):
    """Where the numbers go. `name` is one of a meter's series; `labels` are all of that series' labels."""

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """Count `amount` (> 0) more."""

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Be at `value` now."""


class MemorySink:
    """Keeps the numbers: (name, the labels' values in order) -> number."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, ...], float] = {}

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        key = (name, *labels.values())
        self.numbers[key] = self.numbers.get(key, 0.0) + amount

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        self.numbers[(name, *labels.values())] = value


class Tally:
    """Counts since the last time they were handed on. Not safe for threads: `Observer` holds a lock around it."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Meter, Labels], float] = {}
        self._spreads: dict[tuple[Meter, Labels], list[float]] = {}

    def add(self, meter: Meter, labels: Labels = (), amount: float = 1) -> None:
        key = (meter, labels)
        self._counts[key] = self._counts.get(key, 0) + amount

    def observe(self, meter: Meter, value: float, labels: Labels = ()) -> None:
        """One value for a histogram."""
        spread = self._spreads.get((meter, labels))
        if spread is None:  # a count for each bucket, the last one without an upper edge, and the sum of the values
            spread = self._spreads[(meter, labels)] = [0] * (len(meter.bounds) + 2)
        spread[bisect_left(meter.bounds, value)] += 1
        spread[-1] += value

    def hand_on(self, sink: Sink) -> None:
        for (meter, labels), amount in self._counts.items():
            if amount > 0:
                sink.add(meter.name, dict(zip(meter.labels, labels, strict=True)), amount)
        for (meter, labels), (*counts, total) in self._spreads.items():
            named = dict(zip(meter.labels, labels, strict=True))
            upto = list(accumulate(counts))
            for bound, count in zip((*meter.bounds, float("inf")), upto, strict=True):
                sink.add(f"{meter.name}_bucket", {**named, "le": _edge(bound)}, count or _NOTHING)
            sink.add(f"{meter.name}_sum", named, total or _NOTHING)
            sink.add(f"{meter.name}_count", named, upto[-1])


def _edge(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(float(bound))
