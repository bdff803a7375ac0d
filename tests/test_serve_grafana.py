"""The endpoint's dashboard and the metrics behind it: the file, then Ray's metrics port, then a Prometheus."""

import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import serve.watching.meters
from data.images import Failure
from models.bundle import BundleInfo, read_info
from models.confidences import BINS
from models.predictor import Prediction
from serve.watching.meters import METERS, MemorySink, Sink
from serve.watching.observe import Observer
from tests.scraping import asked, eventually, prometheus, scraped

DASHBOARD = Path(str(serve.watching.meters.__file__)).with_name("grafana.json")
# Ray Serve's own, and where it makes them: our dashboard shows them too.
OF_RAY = {
    "ray_serve_deployment_replica_healthy": {"deployment", "application"},
    "ray_serve_autoscaling_target_replicas": {"deployment", "application"},
}
HOSTILE = ("eagle ray", 'a"b\n{}\\', "Rüppell's 🦅", "x" * 300, "")


def exported() -> dict[str, set[str]]:
    """The names that Prometheus sees, with our labels."""
    return {
        f"ray_{name}" + ("" if meter.kind == "gauge" else "_total"): set(labels)
        for meter in METERS
        for name, labels in meter.series().items()
    }


def queries() -> list[str]:
    """Every query of the dashboard, with what Grafana would fill in for its variables."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    return [text.replace("$model", "seen").replace("$__rate_interval", "1m") for text in expressions]


def names_and_labels(query: str) -> tuple[set[str], set[str]]:
    """The metrics of a query, and the labels that it asks for."""
    labels = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|=|!=)", query))
    for listed in re.findall(r"(?:by|on) \(([^)]*)\)", query):
        labels |= {label.strip() for label in listed.split(",")}
    return set(re.findall(r"\bray_\w+", query)), labels


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_metrics_and_labels_that_there_are(query: str) -> None:
    names, labels = names_and_labels(query)
    known = {**exported(), **OF_RAY}
    assert names
    assert names <= set(known)
    # A query over two metrics may use a label that one of them has.
    assert labels <= set().union(*(known[name] for name in names))


def test_the_dashboard_shows_every_metric() -> None:
    shown = set().union(*(names_and_labels(query)[0] for query in queries()))
    unseen = set(exported()) - shown
    # Of a histogram of times and confidences the buckets say all.
    assert {name for name in unseen if not name.endswith(("_sum_total", "_count_total"))} == set()


def test_rays_own_metrics_are_those_that_this_ray_makes() -> None:
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.submodule_search_locations
    source = (Path(ray.submodule_search_locations[0]) / "serve/_private/deployment_state.py").read_text()
    for name in OF_RAY:
        assert f'"{name.removeprefix("ray_")}"' in source


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "model"}
    panels = dashboard["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    assert all(panel["title"] and panel["description"] for panel in panels)
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24


# --- on Ray


@dataclass(frozen=True)
class Both(Sink):
    """What goes to Ray goes to a memory too: the load generator's own counts."""

    ray: Sink
    memory: MemorySink

    def add(self, name: str, labels: Any, amount: float) -> None:
        self.ray.add(name, labels, amount)
        self.memory.add(name, labels, amount)

    def set(self, name: str, labels: Any, value: float) -> None:
        self.ray.set(name, labels, value)
        self.memory.set(name, labels, value)


@dataclass(frozen=True)
class Seen:
    """Two observers' counts: one lives on in this process, the other's process has been killed by Ray."""

    observer: Observer
    info: BundleInfo
    expected: dict[str, float]
    """name{labels} -> number, over both."""
    workers: frozenset[str]
    """The two processes: other tests' endpoints may be on the same Ray."""


def work(observer: Observer, info: BundleInfo, rounds: int) -> None:
    """Some of everything that an endpoint tells."""
    for turn in range(rounds):
        for status, key in ((200, "ana"), (401, ""), (429, "ana"), (500, "ana")):
            observer.request(
                route="/predict",
                method="POST",
                status=status,
                seconds=0.003 * (turn + 1),
                model=info.id if status == 200 else "",
                key=key,
                request_id="r",
                received=1000,
            )
        predictions = [Prediction(label, 0.4 + turn / 100, (1.0,), None) for label in HOSTILE]
        observer.predicted(info, [*predictions, Failure("truncated", "cut off")])
        observer.batch(turn + 1, 0.01)
        observer.waiting(turn)


def flat(memory: MemorySink) -> dict[str, float]:
    """The counters, under the names and labels of Prometheus; the buckets that are as good as 0 stand for 0."""
    labels = {name: labels for meter in METERS if meter.kind != "gauge" for name, labels in meter.series().items()}
    return {
        text(f"ray_{name}_total", dict(zip(labels[name], values, strict=True))): number
        for (name, *values), number in memory.numbers.items()
        if name in labels
    }


def text(name: str, labels: dict[str, str]) -> str:
    return name + json.dumps({key: value for key, value in labels.items() if value}, sort_keys=True)


@pytest.fixture(scope="module")
def seen(ray_cluster: None, tiny_bundle: str) -> Iterator[Seen]:
    import ray

    from serve.watching.raymeters import RaySink

    info = replace(read_info(tiny_bundle), id="seen", confidences=[100] * BINS)

    @ray.remote(num_cpus=0)
    class Replica:
        def __init__(self) -> None:
            self.memory = MemorySink()
            self.observer = Observer(Both(RaySink(), self.memory))

        def work(self) -> tuple[str, dict[str, float]]:
            work(self.observer, info, 10)
            self.observer.close()
            return ray.get_runtime_context().get_worker_id(), flat(self.memory)

    replica = Replica.remote()  # type: ignore[attr-defined]
    memory = MemorySink()
    observer = Observer(Both(RaySink(), memory))
    work(observer, info, 30)
    observer.flush()
    worker, of_replica = ray.get(replica.work.remote())
    ray.kill(replica)  # as Ray Serve ends a replica, right after its last request
    expected = flat(memory)
    for name, number in of_replica.items():
        expected[name] = expected.get(name, 0.0) + number
    yield Seen(observer, info, expected, frozenset({worker, ray.get_runtime_context().get_worker_id()}))
    observer.close()


def summed(workers: frozenset[str]) -> dict[str, float]:
    """The endpoint's counters on Ray's metrics port, over these processes."""
    ours, found = exported(), dict[str, float]()
    for name, labels, number in scraped("ray_eagleray_serve_"):
        if name.endswith("_total") and labels["WorkerId"] in workers:
            key = text(name, {label: labels[label] for label in ours[name]})
            found[key] = found.get(key, 0.0) + number
    return found


@pytest.mark.ray
def test_the_metrics_port_agrees_with_the_counts_to_the_last_request(seen: Seen) -> None:
    """Also with those of a replica that has ended, and whatever the classes are called."""
    waited = {name for name in seen.expected if "waited_seconds" in name}  # goes on, as somebody still waits
    expected = {name: pytest.approx(number) for name, number in seen.expected.items() if name not in waited}

    def found() -> dict[str, float]:
        return {name: number for name, number in summed(seen.workers).items() if name in expected}

    assert eventually(found, lambda answer: answer == expected) == expected
    answered = {"model": "seen", "route": "/predict", "code": "200", "method": "POST"}
    assert found()[text("ray_eagleray_serve_requests_total", answered)] == 40
    gauges = [labels["model"] for _, labels, number in scraped("ray_eagleray_serve_confidence_drift") if 0 < number < 1]
    assert gauges.count("seen") >= 2


@pytest.fixture
def rays_gauges(ray_cluster: None) -> Callable[[], None]:
    """Sets what Ray Serve itself says of a deployment's replicas; there is no Serve in this test."""
    import ray.util.metrics

    gauges = [
        ray.util.metrics.Gauge(name.removeprefix("ray_"), "As Ray Serve's.", tuple(labels))
        for name, labels in OF_RAY.items()
    ]

    def say() -> None:
        for gauge in gauges:
            gauge.set(1.0, {"deployment": "endpoint", "application": "eagleray"})

    return say


@pytest.mark.ray
@pytest.mark.prometheus
def test_every_query_of_the_dashboard_has_data(seen: Seen, rays_gauges: Callable[[], None], tmp_path: Path) -> None:
    def number(client: httpx.Client, query: str) -> list[float]:
        """The answers to a query that are numbers: a rate over nothing is 0 / 0."""
        return [value for _, value in asked(client, query) if math.isfinite(value)]

    with prometheus(tmp_path) as client:
        assert eventually(lambda: number(client, "ray_eagleray_serve_waiting_images"), bool)
        rays_gauges()
        work(seen.observer, seen.info, 30)  # a rate is between two numbers
        assert len(queries()) >= 20
        for query in queries():
            assert eventually(lambda query=query: number(client, query), bool), query  # type: ignore[misc]
        p99 = queries()[1]
        assert "0.99" in p99
        assert 0.003 <= number(client, p99)[0] <= 0.1
        models = client.get("/api/v1/label/model/values", params={"match[]": "ray_eagleray_serve_images_total"}).json()
        assert "seen" in models["data"]
