"""What Ray does beside our work and is left out: private names of Ray's, so it is looked at on a running endpoint."""

from collections.abc import Iterator

import pytest

from tests.scraping import eventually
from tests.served import KEY, Served, served
from tests.serving import picture

pytestmark = pytest.mark.ray

WANTED = {
    "ray_serve_deployment_request_counter",
    "ray_serve_replica_processing_queries",
    "ray_eagleray_serve_latency_seconds_bucket",
}


@pytest.fixture(scope="module", params=["haproxy", "python"])
def running(tiny_bundle: str, request: pytest.FixtureRequest) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # ten seconds otherwise
        options = ("--bundle", tiny_bundle, "--max-replicas", "1", "--shutdown-s", "1", "--ingress", request.param)
        with served(*options) as endpoint:
            yield endpoint


def test_it_leaves_out_the_reader_of_logs_and_the_latencies_and_keeps_the_counts(running: Served) -> None:
    """The reader looks into Ray's log files ten times a second for a driver that prints them."""
    lines = [" ".join(process.cmdline()) for process in running.processes()]
    assert any("/ray/dashboard/dashboard.py" in line for line in lines)
    assert not any("log_monitor" in line for line in lines)

    with running.client(KEY) as client:
        assert client.post("/predict", content=picture(0, 30)).status_code == 200
    found = eventually(running.replica_metrics, lambda names: names >= WANTED)
    assert found >= WANTED
    latencies = {name for name in found if name.endswith("latency_ms") and ("processing" in name or "request" in name)}
    assert latencies <= {"ray_serve_deployment_max_processing_latency_ms"}  # a gauge, set now and then
