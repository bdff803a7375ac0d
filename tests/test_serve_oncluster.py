"""serve/oncluster.yaml: it survives a worker that is taken back, can be rolled, and what it cannot set is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import UserError
from serve.running.clusternode import MARK, refuse_too_late
from serve.running.deployment import build
from serve.running.ingress import tuning
from serve.settings import EndpointConfig, ServeConfig
from tests.commands import ROOT

DEPLOYED: dict[str, Any] = yaml.safe_load((ROOT / "serve/oncluster.yaml").read_text())
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
ON_NODE = {MARK: "1"}


def arguments(**more: Any) -> ServeConfig:
    (application,) = DEPLOYED["applications"]
    return ServeConfig.from_arguments(application["args"] | more)


def test_a_worker_that_is_taken_back_is_not_the_only_one() -> None:
    assert arguments().min_replicas >= 2


def test_replicas_that_restart_have_a_machine_to_start_on() -> None:
    """A roll starts the new ones first (max_surge_percent), and a replica takes a whole worker."""
    assert arguments().max_replicas < CLUSTER["max_workers"]


def test_what_is_committed_is_not_refused() -> None:
    refuse_too_late(arguments(), ON_NODE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "0.0.0.0"),
        ("port", 8080),
        ("ingress", "python"),
        ("request_timeout_s", 121),
        ("body_timeout_s", 31),
    ],
)
def test_what_only_a_nodes_start_can_set_is_refused_there_and_nowhere_else(name: str, value: Any) -> None:
    asked = arguments(**{name: value})
    with pytest.raises(UserError, match=name):
        refuse_too_late(asked, ON_NODE)
    refuse_too_late(asked, {})


def test_a_certificate_is_refused() -> None:
    with pytest.raises(UserError, match="tls_cert, tls_key: without effect on a cluster"):
        refuse_too_late(arguments(tls_cert="cert.pem", tls_key="key.pem"), ON_NODE)


def test_a_shorter_time_is_the_endpoints_own_affair() -> None:
    refuse_too_late(arguments(request_timeout_s=60, body_timeout_s=10), ON_NODE)


def test_what_is_refused_is_longer_than_haproxys_patience() -> None:
    usual = tuning(ServeConfig(EndpointConfig("b")))
    for name, variable in (("request_timeout_s", "SERVER"), ("body_timeout_s", "CLIENT")):
        longer = tuning(arguments(**{name: getattr(arguments(), name, 30) + 1}))
        assert longer[f"RAY_SERVE_HAPROXY_TIMEOUT_{variable}_S"] > usual[f"RAY_SERVE_HAPROXY_TIMEOUT_{variable}_S"]


def test_a_node_is_marked_as_one(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "serve.running.clusternode"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd="/", check=True)
    assert f"export {MARK}=1" in done.stdout.splitlines()


def test_such_an_application_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "1")
    with pytest.raises(UserError, match="port: without effect on a cluster"):
        build({"bundle": "b", "port": 8080})
