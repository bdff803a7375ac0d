"""What Ray does beside our work and is left out: private names of Ray's, so it is looked at on a running endpoint."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.scraping import eventually
from tests.served import Served, served
from tests.serving import picture

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", params=["haproxy", "python"])
def running(tiny_bundle: str, request: pytest.FixtureRequest) -> Iterator[Served]:
    with served("--bundle", tiny_bundle, "--max-replicas", "1", "--ingress", request.param) as endpoint:
        yield endpoint


def of_the_replica(endpoint: Served) -> set[str]:
    """The names of all metrics that its replica has, on the ports that Ray names to Prometheus."""
    places = json.loads(Path(endpoint.note.session_dir, "prom_metrics_service_discovery.json").read_text())
    ports = [port for place in places for port in place["targets"]]
    pages = [httpx.get(f"http://{port}/metrics", timeout=30).text for port in ports]
    families = [family for page in pages for family in text_string_to_metric_families(page)]
    by_process = [(one.labels.get("WorkerId"), family.name) for family in families for one in family.samples]
    replica = {process for process, name in by_process if name.startswith("ray_eagleray_serve_requests")}
    return {name for process, name in by_process if process in replica}


def test_what_nobody_reads_does_not_run(running: Served) -> None:
    """Ray's reader of log files, which looks at them ten times a second for a driver that prints them."""
    lines = [" ".join(process.cmdline()) for process in running.processes()]
    assert any("/ray/dashboard/dashboard.py" in line for line in lines)
    assert not any("log_monitor" in line for line in lines)


def test_ray_counts_requests_and_leaves_their_latencies_to_the_endpoint(running: Served) -> None:
    wanted = {"ray_serve_deployment_request_counter", "ray_serve_replica_processing_queries"}
    wanted |= {"ray_eagleray_serve_latency_seconds_bucket"}
    with running.client() as client:
        assert client.post("/predict", content=picture(0, 30)).status_code == 200
    found = eventually(lambda: of_the_replica(running), lambda names: wanted <= names)
    assert wanted <= found
    greatest = {"ray_serve_deployment_max_processing_latency_ms"}  # a gauge, set now and then
    kept = {name for name in found if name.endswith("latency_ms") and ("processing" in name or "request" in name)}
    assert kept <= greatest
