"""What a Prometheus sees of this session's Ray: the metrics port itself, and a real Prometheus that scrapes it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

PATIENCE_S = 120
Value = TypeVar("Value")
Sample = tuple[str, dict[str, str], float]
"""Name, labels, value."""


def eventually(ask: Callable[[], Value], wanted: Callable[[Value], bool]) -> Value:
    """The first answer that is wanted, or the last one when patience is at its end."""
    until = time.monotonic() + PATIENCE_S
    while not wanted(answer := ask()) and time.monotonic() < until:
        time.sleep(0.25)
    return answer


def scraped(prefix: str) -> list[Sample]:
    """The samples of Ray's metrics port whose names begin so."""
    node = ray.nodes()[0]
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30).text
    families = text_string_to_metric_families(text)
    samples = (sample for family in families for sample in family.samples)
    return [(sample.name, sample.labels, sample.value) for sample in samples if sample.name.startswith(prefix)]


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[httpx.Client]:
    """A real Prometheus that finds this Ray's nodes by the file that Ray writes for it."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("there is no prometheus on this machine (Debian: apt-get install prometheus)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    node: Any = ray._private.worker._global_node
    found = os.path.join(node.get_session_dir_path(), "prom_metrics_service_discovery.json")
    jobs = [{"job_name": "ray", "file_sd_configs": [{"files": [found]}]}]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    files = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([binary, *files, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", transport=httpx.HTTPTransport(retries=10)) as client:
            yield client
    finally:
        server.terminate()
        server.wait(30)


def asked(client: httpx.Client, expression: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each row that Prometheus answers now; [] while it is not up."""
    try:
        response = client.get("/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return []
    if response.status_code == 503:  # it listens before it is ready, and says so in plain text
        return []
    answer = response.json()
    assert answer["status"] == "success", answer
    return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]
