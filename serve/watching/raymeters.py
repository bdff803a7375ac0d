"""The endpoint's meters in Ray's metrics: Prometheus scrapes them from each node, with `ray_` before the names and
`_total` behind a counter's."""

from collections.abc import Mapping

import ray.util.metrics

from serve.watching.meters import METERS


class RaySink:
    """Ray keeps them apart by process (the label `WorkerId`), so that two replicas of a node do not mix.

    Ray's process sends its sums to the node's agent every ten seconds, and once more when it ends, also when Serve ends
    it with `ray.kill`; only a process that is killed from outside (`kill -9`, out of memory) takes its last ten seconds
    with it. A gauge that is not set again for twenty seconds disappears (all Ray 2.60).
    """

    def __init__(self) -> None:
        self._counters: dict[str, ray.util.metrics.Counter] = {}
        self._gauges: dict[str, ray.util.metrics.Gauge] = {}
        for meter in METERS:
            for name, labels in meter.series().items():
                if meter.kind == "gauge":
                    self._gauges[name] = ray.util.metrics.Gauge(name, meter.description, labels)
                else:
                    self._counters[name] = ray.util.metrics.Counter(name, meter.description, labels)

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        self._counters[name].inc(amount, {key: _Text(value) for key, value in labels.items()})

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        self._gauges[name].set(value, {key: _Text(value) for key, value in labels.items()})


class _Text(str):
    """A label's value that Ray takes in any language: it asks for ASCII and fails on 'Rüppell's vulture', though all
    that comes after it, to Prometheus, is UTF-8."""

    def encode(self, _encoding: str = "", _errors: str = "") -> bytes:
        return super().encode("utf-8", "replace")
