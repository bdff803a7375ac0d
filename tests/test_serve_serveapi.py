"""The client of Ray Serve's REST API, against a server that speaks as Ray's dashboard does."""

import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from serve.promotion.serveapi import ChangedError, ServeApi, ray_token
from tests.serving import free_port

CONFIG = {"bundle": "old", "threads": 1, "candidate": None}


def endpoint(user_config: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    """An application as GET tells it; `user_config` as it was deployed, None where the code says it."""
    deployments = [] if user_config is None else [{"name": "endpoint", "user_config": user_config, "num_replicas": 2}]
    told = {
        "status": "RUNNING",
        "message": "",
        "deployed_app_config": {
            "name": "eagleray",
            "import_path": "serve.app:app",
            "args": {"bundle": "old"},
            "runtime_env": {"env_vars": {"A": "b"}},
            "deployments": deployments,
        },
        "deployments": {
            "endpoint": {
                "message": "",
                "deployment_config": {"name": "endpoint", "user_config": user_config or CONFIG},
                "replicas": [{"replica_id": "a1", "state": "RUNNING"}, {"replica_id": "b2", "state": "STOPPING"}],
            }
        },
    }
    return {**told, **changed}


class Dashboard:
    """Answers GET with what it was given, and keeps what is PUT. `failures` are answered first."""

    def __init__(self) -> None:
        self.details: dict[str, Any] = {
            "applications": {"eagleray": endpoint(CONFIG)},
            "http_options": {"host": "127.0.0.1", "port": 8000},
            "proxy_location": "EveryNode",
            "target_capacity": None,
        }
        self.put: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.failures: list[int] = []
        self.url = ""


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    kept = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            kept.tokens.append(self.headers["authorization"])
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            status = kept.failures.pop(0) if kept.failures else 200
            if status == 200 and self.command == "PUT":
                kept.put.append(json.loads(body))
            blob = json.dumps(kept.details).encode() if status == 200 else b"Traceback: something\n broke"
            self.send_response(status)
            if status == 302:
                self.send_header("location", "/elsewhere")
            self.send_header("content-length", str(len(blob)))
            self.end_headers()
            self.wfile.write(blob)

        do_GET = do_PUT = _answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_port}"
    yield kept
    server.shutdown()
    server.server_close()
    thread.join()


def api(dashboard: Dashboard, token: str = "") -> ServeApi:
    return ServeApi(dashboard.url, token, timeout_s=10, pause_s=0)


def test_what_is_deployed(dashboard: Dashboard) -> None:
    found = api(dashboard).application()
    assert (found.name, found.status, found.user_config) == ("eagleray", "RUNNING", CONFIG)
    assert found.replicas == {"a1"}
    assert found.settled
    assert dashboard.tokens == [None]


def test_the_address_may_be_written_without_a_scheme(dashboard: Dashboard) -> None:
    assert ServeApi(dashboard.url.removeprefix("http://")).application().name == "eagleray"


@pytest.mark.parametrize("state", ["STARTING", "UPDATING"])
def test_it_is_not_settled_while_a_replica_starts(dashboard: Dashboard, state: str) -> None:
    replicas = dashboard.details["applications"]["eagleray"]["deployments"]["endpoint"]["replicas"]
    replicas.append({"replica_id": "c3", "state": state})
    assert not api(dashboard).application().settled


def test_it_is_not_settled_before_ray_has_begun(dashboard: Dashboard) -> None:
    """Right after a PUT the deployment still has its old settings, and the application is still RUNNING."""
    deployed = dashboard.details["applications"]["eagleray"]["deployed_app_config"]["deployments"][0]
    deployed["user_config"] = {**CONFIG, "bundle": "new"}
    found = api(dashboard).application()
    assert found.user_config["bundle"] == "new"
    assert not found.settled


def test_a_change_leaves_all_else_as_it_was(dashboard: Dashboard) -> None:
    other = {"deployed_app_config": {"name": "other", "import_path": "x:y"}, "status": "RUNNING", "deployments": {}}
    by_code: dict[str, Any] = {"deployed_app_config": None, "status": "RUNNING", "deployments": {}}
    dashboard.details["applications"] |= {"other": other, "by code": by_code}
    dashboard.details["target_capacity"] = 50
    before = copy.deepcopy(dashboard.details)
    api(dashboard, "secret").change("eagleray", CONFIG, {**CONFIG, "bundle": "new"})
    (body,) = dashboard.put
    ours, theirs = body["applications"]
    assert theirs == other["deployed_app_config"]
    assert ours["deployments"] == [{"name": "endpoint", "user_config": {**CONFIG, "bundle": "new"}, "num_replicas": 2}]
    expected = before["applications"]["eagleray"]["deployed_app_config"]
    assert {**ours, "deployments": None} == {**expected, "deployments": None}
    assert {name: body[name] for name in body if name != "applications"} == {
        "target_capacity": 50,
        "proxy_location": "EveryNode",
        "http_options": before["http_options"],
    }
    assert set(dashboard.tokens) == {"Bearer secret"}


def test_settings_that_the_code_gave_can_be_changed(dashboard: Dashboard) -> None:
    dashboard.details["applications"]["eagleray"] = endpoint(None)
    assert api(dashboard).application().user_config == CONFIG
    api(dashboard).change("eagleray", CONFIG, {"bundle": "new"})
    assert dashboard.put[0]["applications"][0]["deployments"] == [
        {"name": "endpoint", "user_config": {"bundle": "new"}}
    ]


def test_what_somebody_else_changed_is_not_overwritten(dashboard: Dashboard) -> None:
    with pytest.raises(ChangedError, match="somebody else"):
        api(dashboard).change("eagleray", {"bundle": "older"}, {"bundle": "new"})
    assert dashboard.put == []


def test_a_passing_trouble_passes(dashboard: Dashboard) -> None:
    dashboard.failures = [500, 503]
    assert api(dashboard).application().name == "eagleray"


@pytest.mark.parametrize(
    ("failures", "complaint"),
    [
        ([500] * 9, "answered 500: Traceback: something broke"),
        ([400] * 9, "answered 400"),
        ([302] * 9, "answered 302"),  # the token does not follow it
        ([401], "RAY_AUTH_TOKEN"),
        ([403], "RAY_AUTH_TOKEN"),
    ],
)
def test_refusals_are_told(dashboard: Dashboard, failures: list[int], complaint: str) -> None:
    dashboard.failures = failures
    with pytest.raises(UserError, match=complaint):
        api(dashboard, "secret").application()


def test_nobody_there() -> None:
    with pytest.raises(UserError, match="is the endpoint running"):
        ServeApi(f"http://127.0.0.1:{free_port()}", timeout_s=5, pause_s=0).application()


@pytest.mark.parametrize(
    ("applications", "name", "complaint"),
    [
        ({}, "", "no endpoint is deployed"),
        ({"eagleray": endpoint(CONFIG)}, "other", "no application other"),
        ({"a": endpoint(CONFIG), "b": endpoint(CONFIG)}, "", r"several endpoints run there \(a, b\)"),
        ({"a": endpoint(CONFIG, deployed_app_config=None)}, "", "cannot change its model in place"),
        ({"a": endpoint(CONFIG, deployments={})}, "", "no endpoint is deployed"),
    ],
)
def test_an_endpoint_that_cannot_be_changed(
    dashboard: Dashboard, applications: dict[str, Any], name: str, complaint: str
) -> None:
    dashboard.details["applications"] = applications
    with pytest.raises(UserError, match=complaint):
        api(dashboard).application(name)


def test_the_token_is_the_one_that_ray_would_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ray_token({}) == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from home\n")
    (tmp_path / "other").write_text("from a file\n")
    assert ray_token({}) == "from home"
    assert ray_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}) == "from a file"
    assert ray_token({"RAY_AUTH_TOKEN": "said", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}) == "said"
