"""Whether what the endpoint's metrics say is what was sent: both are counted, and must be equal.

    python benchmarks/counts.py

Our own load generator sends pictures with a key, some without one, some with a wrong one, some empty bodies and some to
a path that is not there, from eight clients at once, and pictures from more clients than the endpoint has places for.
Then Ray's metrics port is scraped, as Prometheus would do it. The last line is one JSON object: the counts of both
sides by route and status, and `equal`.
"""

import json
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro
from loadgen import Post, closed_loop, jpegs
from prometheus_client.parser import text_string_to_metric_families
from underload import Endpoint, say, write_bundle

_METRIC = "ray_eagleray_serve_requests_total"
_PLACES = ("--max-ongoing-requests", "8", "--max-queued-requests", "16")


@dataclass(frozen=True)
class CountsConfig:
    """How much is sent."""

    seconds: float = 10
    """Of each kind of request."""
    patience_s: float = 60
    """Ray hands its metrics on every few seconds."""


def scraped(endpoint: Endpoint) -> Counter[str]:
    """Requests by route and status, over all ports that Ray tells Prometheus of."""
    note = json.loads((endpoint.folder / "eagleray" / "endpoints" / f"{endpoint.port}.json").read_text())
    groups = json.loads((Path(note["session_dir"]) / "prom_metrics_service_discovery.json").read_text())
    found: Counter[str] = Counter()
    for target in {target for group in groups for target in group["targets"]}:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as page:
            text = page.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == _METRIC and sample.labels["method"] == "POST":
                    found[f"{sample.labels['route']} {sample.labels['code']}"] += round(sample.value)
    return found


def main() -> int:
    config = tyro.cli(CountsConfig, description=__doc__)
    sent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "tiny", "tiny")
        with Endpoint(Path(folder) / "tiny", "--max-replicas", "1", *_PLACES) as endpoint:
            wrong = {"authorization": "Bearer er_a-key-that-nobody-has-made"}
            predict, nowhere = f"{endpoint.url}/predict", f"{endpoint.url}/nowhere"
            # Who refuses at the door, or for want of a place, knows no route: that is counted under "other".
            for post, route, clients in (
                (Post(predict, jpegs(10), endpoint.headers), "/predict", 8),
                (Post(predict, [b""], endpoint.headers), "/predict", 8),
                (Post(nowhere, [b"x"], endpoint.headers), "other", 8),
                (Post(predict, jpegs(10), {}), "other", 8),
                (Post(predict, jpegs(10), wrong), "other", 8),
                (Post(predict, jpegs(10), endpoint.headers), "/predict", 64),
            ):
                load = closed_loop(post, connections=clients, seconds=config.seconds, own=True)
                assert not load.broken, load
                for status, count in load.statuses.items():
                    sent[f"{'other' if status == '429' else route} {status}"] += count
            end = time.monotonic() + config.patience_s
            while (found := scraped(endpoint)) != sent and time.monotonic() < end:
                time.sleep(1)
    say(equal=found == sent, sent=dict(sent), scraped=dict(found))
    # Without a 429 among them the last kind would have shown nothing.
    return 0 if found == sent and sent["other 429"] else 1


if __name__ == "__main__":
    sys.exit(main())
