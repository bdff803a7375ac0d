"""Ray Serve's declarative REST API, on the dashboard: what is deployed, and one deployment's user_config changed.

A PUT that changes nothing but `user_config` reaches the replicas in place, in the same processes; all else in it must
come back as it was, or Ray restarts replicas and deletes the applications that are missing.
"""

import copy
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import urllib3

from data.errors import UserError

DEPLOYMENT: Final = "endpoint"
_PATH: Final = "/api/serve/applications/"
_TRIES: Final = 4


class ChangedError(Exception):
    """Somebody else has changed the deployment since it was read."""


@dataclass(frozen=True)
class Application:
    """An endpoint's application as Ray Serve sees it now."""

    name: str
    status: str
    """RUNNING, DEPLOYING, UNHEALTHY, DEPLOY_FAILED, DELETING, ..."""
    message: str
    user_config: Mapping[str, Any]
    """As it was last asked for."""
    applied: bool
    """Whether the deployment works towards that already; right after a PUT it does not yet."""
    replicas: frozenset[str]
    """Ids of the replicas that run."""
    starting: int
    """Replicas that are neither running nor on their way out."""

    @property
    def settled(self) -> bool:
        """Whether every replica has heard of the newest user_config."""
        return self.status == "RUNNING" and self.applied and not self.starting


class ServeApi:
    """The REST API of one dashboard. UserError where it cannot be reached or does not let us in."""

    def __init__(self, dashboard: str, token: str = "", *, timeout_s: float = 30.0, pause_s: float = 1.0) -> None:
        """`dashboard`: http(s)://host:port. `token`: Ray's, empty where the cluster asks for none."""
        self._url = (dashboard if "://" in dashboard else f"http://{dashboard}").rstrip("/") + _PATH
        self._headers = {"accept": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        # No redirects: the token must not follow one to another host.
        self._http = urllib3.PoolManager(timeout=timeout_s, retries=False)
        self._pause_s = pause_s

    def application(self, name: str = "") -> Application:
        """The endpoint's application; UserError unless there is one, by that name where one is given."""
        return _application(self._chosen(self._read(), name))

    def change(self, name: str, expected: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Put `wanted` in the place of `expected`. ChangedError, and nothing done, if the latter is no longer there.

        Ray has no conditional PUT: between the look and the change lie milliseconds in which another may come. Who
        changes something should look afterwards whether it is there.
        """
        found = self._read()
        chosen = self._chosen(found, name)
        if _application(chosen).user_config != expected:
            raise ChangedError(f"the settings of {name} have been changed by somebody else")
        body: dict[str, Any] = {"applications": _configs(found, name, wanted)}
        for setting in ("target_capacity", "proxy_location", "http_options", "grpc_options"):
            if found.get(setting) is not None:
                body[setting] = found[setting]
        self._request("PUT", json.dumps(body).encode())

    def _chosen(self, found: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]]:
        endpoints = {
            app: details
            for app, details in found.get("applications", {}).items()
            if DEPLOYMENT in details.get("deployments", {}) and name in ("", app)
        }
        if not endpoints:
            where = f"no application {name}" if name else "no endpoint"
            raise UserError(f"{self._url}: {where} is deployed there; start one with serve/app.py, or name another")
        if len(endpoints) > 1:
            raise UserError(f"several endpoints run there ({', '.join(sorted(endpoints))}): choose one with --app")
        ((app, details),) = endpoints.items()
        if details.get("deployed_app_config") is None:
            raise UserError(
                f"the application {app} was not deployed by a config (serve/app.py and `serve deploy` do that), so "
                "Ray Serve cannot change its model in place: start it again with one of them"
            )
        return app, details

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._request("GET"))
        return found

    def _request(self, method: str, body: bytes | None = None) -> bytes:
        """Both methods may be sent again: the same PUT twice changes nothing the second time."""
        headers = self._headers | ({"content-type": "application/json"} if body else {})
        problem = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(self._pause_s)
            try:
                answer = self._http.request(method, self._url, body=body, headers=headers)
            except urllib3.exceptions.HTTPError as error:
                problem = f"no answer from Ray's dashboard ({error}); is the endpoint running?"
                continue
            if answer.status == 200:
                return answer.data
            text = " ".join(answer.data.decode(errors="replace").split())[:300]
            if answer.status in (401, 403):
                raise UserError(
                    f"{self._url}: Ray's dashboard refuses the token ({answer.status}); put the cluster's token into "
                    "RAY_AUTH_TOKEN or ~/.ray/auth_token (`ray get-auth-token` prints it)"
                )
            problem = f"Ray's dashboard answered {answer.status}: {text}"
            if answer.status < 500:
                break
        raise UserError(f"{self._url}: {problem}")


def ray_token(environ: Mapping[str, str] = os.environ) -> str:
    """The token that Ray itself would use here, empty if there is none."""
    if token := environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    file = Path(environ.get("RAY_AUTH_TOKEN_PATH", "") or Path.home() / ".ray" / "auth_token").expanduser()
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _application(chosen: tuple[str, Mapping[str, Any]]) -> Application:
    name, details = chosen
    deployment = details["deployments"][DEPLOYMENT]
    applied = deployment["deployment_config"].get("user_config") or {}
    asked = [one["user_config"] for one in _ours(details["deployed_app_config"]) if one.get("user_config")]
    states = {replica["replica_id"]: replica["state"] for replica in deployment.get("replicas", [])}
    return Application(
        name=name,
        status=details["status"],
        message=" ".join(f"{details.get('message', '')} {deployment.get('message', '')}".split()),
        user_config=asked[0] if asked else applied,
        applied=not asked or asked[0] == applied,
        replicas=frozenset(replica for replica, state in states.items() if state == "RUNNING"),
        starting=sum(state not in ("RUNNING", "STOPPING") for state in states.values()),
    )


def _ours(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an application's config says of the endpoint's deployment: nothing, where the code says it all."""
    return [one for one in config.get("deployments", []) if one["name"] == DEPLOYMENT]


def _configs(found: Mapping[str, Any], name: str, user_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each application as it was deployed, but for the one whose deployment gets another user_config."""
    configs = []
    for app, details in found["applications"].items():
        config = copy.deepcopy(details.get("deployed_app_config"))
        if config is None:
            continue  # deployed by code; a PUT leaves those alone
        if app == name:
            if not _ours(config):
                config.setdefault("deployments", []).append({"name": DEPLOYMENT})
            _ours(config)[0]["user_config"] = dict(user_config)
        configs.append(config)
    return configs
