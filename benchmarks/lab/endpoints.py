"""Through the tunnel: the dashboard with its token, and the endpoint with its key."""

import argparse
import json
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import yaml
from labhosts import KEY_FILE, Lab, lab_of
from usercommands import BUCKET, curl, data_in_bucket, down, search_command

_DASHBOARD, _ENDPOINT = "http://localhost:8265", "http://localhost:8000"
_SERVING = "serve/watching/grafana.json"
_METRICS = {"EAGLERAY_METRICS=0": "EAGLERAY_METRICS=1"}
# What differs from serve/oncluster.yaml: no GPU, a CPU for each worker, seconds where a cluster has minutes, so few
# requests at once that eight callers are a load, and one replica at first, so that a second one is seen to come and go.
_SMALL = {
    "device": "cpu",
    "cpus_per_replica": 1,
    "min_replicas": 1,
    "max_replicas": 2,
    "max_ongoing_requests": 4,
    "upscale_s": 3,
    "idle_s": 20,
}


# Panels that may be empty in these runs, and why.
_MAY_BE_EMPTY = {"Share of images that failed": "every image that is sent can be labelled"}


def _panels(lab: Lab, file: str) -> dict[str, list[str]]:
    """The titles of a dashboard's panels, by whether Prometheus has anything for one of their queries."""
    found: dict[str, list[str]] = {"data": [], "none": []}
    for panel in json.loads((lab.project / file).read_text())["panels"]:
        queries = [target["expr"] for target in panel.get("targets", ())]
        if queries:
            answers = [_query(lab, query) for query in queries]
            found["data" if any(answers) else "none"].append(panel["title"])
    return found


def _shown(lab: Lab, file: str, meanwhile: Callable[[], object] = lambda: None) -> int:
    """How many panels of a dashboard have data, once all have that must; AssertionError names those that stay empty."""
    found: dict[str, list[str]] = {}

    def complete() -> bool:
        meanwhile()
        found.update(_panels(lab, file))
        return set(found["none"]) <= set(_MAY_BE_EMPTY)

    try:
        lab.wait(f"the panels of {file}", complete, 240)
    except TimeoutError:
        empty = sorted(set(found["none"]) - set(_MAY_BE_EMPTY))
        raise AssertionError(f"no data in panels of {file}: {empty}") from None
    lab.say(json.dumps({file: found}, indent=1))
    return len(found["data"])


def _query(lab: Lab, query: str) -> list[Any]:
    for name, value in {"$__rate_interval": "1m", "$__interval": "1m", "$__range": "10m"}.items():
        query = query.replace(name, value)
    query = urllib.parse.quote(re.sub(r"\$\{?\w+\}?", ".*", query))
    status, body = curl(lab, f"http://localhost:9090/api/v1/query?query={query}")
    return json.loads(body)["data"]["result"] if status == 200 else []


def dashboard(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 9: through the tunnel, with the token and without it; Prometheus, and what our panels ask of it."""
    with lab_of(given, **_METRICS) as lab:
        data = data_in_bucket(lab)
        lab.ray_up()
        tunnel = lab.background("ray exec cluster.yaml -p 8265 -p 9090 'sleep 3000'", "tunnel.log")
        url, token = "http://localhost:8265", lab.laptop("cat ~/.ray/auth_token").strip()
        lab.wait("the tunnel", lambda: curl(lab, url)[0] == 200, 60)
        paths = ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/serve/applications/")
        with_token = f"Authorization: Bearer {token}"
        seen = {path: [curl(lab, url + path)[0], curl(lab, url + path, with_token)[0]] for path in paths}
        lab.say(f"status without and with the token: {seen}")
        wrong = {path: found for path, found in seen.items() if found != [401, 200]}
        assert not wrong, f"not 401 without the token and 200 with it: {wrong}"
        # Of so many epochs that it still runs when the panels are asked; those of an endpoint are asked in `endpoint`.
        running = lab.background(search_command(data, "watched", epochs=15), "watched.log")
        lab.wait("the search's gauges", lambda: _query(lab, '{__name__=~"ray_eagleray.*"}'), 300)
        panels = _shown(lab, "tune/grafana.json")
        lab.say(lab.on_head("ls ~/.eagleray; ss -ltn | grep -E ':(3000|9090|8265) '"))
        for process in (running, tunnel):
            process.terminate()
        down(lab)
        return {"status": seen, "panels": panels}


def endpoint(given: argparse.Namespace) -> dict[str, Any]:
    """Acceptance 4: deployed by `serve deploy`, reached by tunnel and key; more load, a reclaimed worker, no load.

    The callers are threads of the endpoint's own client, and none of them may see a request fail.
    """
    with lab_of(given, **_METRICS) as lab:
        bundle = _bundle(lab)
        _set_up(lab, bundle)
        lab.ray_up()
        lab.say(lab.on_head("serve deploy ~/eagleray/serve/oncluster.yaml")[-600:])
        tunnel = lab.background("ray exec cluster.yaml -p 8265 -p 8000 -p 9090 'sleep 3000'", "tunnel.log")
        up = lab.wait("the endpoint answers", lambda: curl(lab, f"{_ENDPOINT}/healthz")[0] == 200, 420)
        key = (lab.project / "key.txt").read_text().strip()
        given_key = ("", "Authorization: Bearer wrong", f"Authorization: Bearer {key}")
        seen = [curl(lab, f"{_ENDPOINT}/model", header)[0] for header in given_key]
        assert seen == [401, 403, 200], f"without a key, with a wrong one and with a right one: {seen}"
        callers = lab.background(f"PYTHONPATH=. python asking.py --url {_ENDPOINT} --threads 8 2>&1", "asked.log")
        grown = lab.wait("two workers with a replica each", lambda: len(_nodes(lab)) == 2, 420)
        taken = _add_key(lab)
        back = _reclaim(lab)
        # Each look is a request without a key, too: there is a panel for those.
        panels = _shown(lab, _SERVING, lambda: curl(lab, f"{_ENDPOINT}/model"))
        (lab.project / "stop").touch()
        callers.wait(timeout=120)
        asked = json.loads((lab.project / "asked.log").read_text().strip().splitlines()[-1])
        lab.say(f"the callers: {asked}")
        shrunk = lab.wait("one worker", lambda: len(lab.workers()) == 1, 420)
        time.sleep(5)
        status = curl(lab, f"{_ENDPOINT}/model", given_key[-1])[0]
        tunnel.terminate()
        down(lab)
        assert asked["failed"] == 0, f"requests failed: {asked}"
        assert status == 200, f"with one worker again the endpoint answers {status}"
        times = {"up_s": up, "grown_s": grown, "new_key_s": taken, "replaced_s": back, "shrunk_s": shrunk}
        return {**times, "asked": asked, "panels": panels}


def _add_key(lab: Lab) -> float:
    """A key made on the laptop while all runs and brought to two workers as the README says; seconds until it holds."""
    key = lab.laptop(f"PYTHONPATH=. python serve/keys.py add later --file {KEY_FILE} 2>/dev/null").strip()
    header = f"Authorization: Bearer {key}"
    assert curl(lab, f"{_ENDPOINT}/model", header)[0] == 403, "the new key is taken before it was brought there"
    lab.laptop(f"ray rsync-up --all-nodes cluster.yaml {KEY_FILE} /home/ubuntu/.eagleray/keys.json 2>&1")
    return lab.wait("the new key", lambda: {curl(lab, f"{_ENDPOINT}/model", header)[0] for _ in range(8)} == {200}, 30)


def _reclaim(lab: Lab) -> float:
    """One of two workers is taken back while the callers ask; seconds until two have a replica again."""
    taken = lab.workers()[0]
    lab.reclaim(taken, 30)
    time.sleep(3)  # what was answered before it went is in the file by then
    before = _answered(lab)
    lab.wait("requests are answered without it", lambda: _answered(lab) > before, 60)
    return lab.wait("two again", lambda: len(_nodes(lab) - {taken["ip"]}) == 2, 420)


def _answered(lab: Lab) -> int:
    """Requests that the callers have had an answer to."""
    return int(json.loads((lab.project / "asking.json").read_text())["answered"])


def _bundle(lab: Lab) -> str:
    """A small model of the laptop's making, in the bucket."""
    data = data_in_bucket(lab)
    settings = f"--data {data} --out {BUCKET}/model --trials 1 --epochs 2 --image-size 48 --seed 0"
    lab.laptop(f"PYTHONPATH=. python tune/search.py {settings} 2>&1")
    return f"{BUCKET}/model/bundle"


def _set_up(lab: Lab, bundle: str) -> None:
    """serve/oncluster.yaml as the user fills it, and as small as the lab; `ray up` takes it to the nodes."""
    file = lab.project / "serve/oncluster.yaml"
    deployed = yaml.safe_load(file.read_text())
    deployed["applications"][0]["args"] |= {"bundle": bundle, **_SMALL}
    file.write_text(yaml.safe_dump(deployed, sort_keys=False))


def _nodes(lab: Lab) -> set[str]:
    """Addresses of the nodes that a replica runs on, as the dashboard tells through the tunnel."""
    token = lab.laptop("cat ~/.ray/auth_token").strip()
    status, body = curl(lab, f"{_DASHBOARD}/api/serve/applications/", f"Authorization: Bearer {token}")
    if status != 200:
        return set()
    deployments = json.loads(body)["applications"].get("eagleray", {}).get("deployments", {})
    replicas = deployments.get("endpoint", {}).get("replicas", [])
    return {replica["node_ip"] for replica in replicas if replica["state"] == "RUNNING"}
