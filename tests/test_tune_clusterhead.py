"""On the head of a cluster: workers that may come count as if they were there, and what the services say is told."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml

from data.errors import UserError
from tune.clusterhead import News, workers_may_have
from tune.nodes.fallback import NEWS, Service
from tune.session import Session, start_ray

ROOT = Path(__file__).resolve().parents[1]
NONE = {"CPU": 0, "GPU": 0}


def written(folder: Path, config: Any) -> Path:
    file = folder / "ray_bootstrap_config.yaml"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return file


def cluster(**workers: Any) -> dict[str, Any]:
    kinds = {"head": {"resources": {"CPU": 64}}, **workers}
    return {"max_workers": 4, "head_node_type": "head", "available_node_types": kinds}


def test_the_committed_cluster_may_grow_to_four_gpus(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert workers_may_have(written(tmp_path, config)) == {"CPU": 16, "GPU": 4}


def test_the_type_that_gives_most_counts_and_the_head_does_not(tmp_path: Path) -> None:
    """Not the sum: four workers is the limit over all types."""
    few = {"max_workers": 2, "resources": {"CPU": 8, "GPU": 1}}
    many = {"max_workers": 9, "resources": {"CPU": 3}}
    unlimited = {"resources": {"CPU": 1}}
    assert workers_may_have(written(tmp_path, cluster(few=few, many=many))) == {"CPU": 16, "GPU": 2}
    assert workers_may_have(written(tmp_path, cluster(unlimited=unlimited))) == {"CPU": 4, "GPU": 0}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "{}", json.dumps(cluster(a={})), json.dumps(cluster(a=None)), "max_workers: 4\n"],
)
def test_a_file_that_cannot_be_read_promises_nothing(tmp_path: Path, text: str) -> None:
    assert workers_may_have(written(tmp_path, text)) == NONE
    assert workers_may_have(tmp_path / "absent.yaml") == NONE


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """A cluster of which only the head is there, and its autoscaler's file; the resources that Ray tells of."""
    resources: dict[str, float] = {"memory": 1e9, "node:__internal_head__": 1.0}
    config = cluster(gpu={"max_workers": 4, "resources": {"CPU": 4, "GPU": 1}})
    home = tmp_path / "home"
    home.mkdir()
    written(home, config)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", lambda **_: SimpleNamespace(dashboard_url="127.0.0.1:8265"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(News, "follow", lambda self: None)
    return resources


def test_trials_fit_on_workers_that_are_not_there_yet(joined: dict[str, float]) -> None:
    found = start_ray()
    assert (found.device, found.cpus, found.gpus) == ("cuda", 16, 4)
    assert found.trials_that_fit(workers=2, threads=1) == 2
    with pytest.raises(UserError, match=r"5 worker\(s\) need 5 GPUs together and Ray has 4"):
        found.trials_that_fit(workers=5, threads=1)


def test_nodes_that_are_there_count_where_they_are_more(joined: dict[str, float]) -> None:
    joined |= {"CPU": 32.0, "GPU": 8.0}
    assert start_ray() == Session("127.0.0.1:8265", 32, 8)


def test_a_cluster_that_can_have_no_worker_is_refused_instead_of_waited_for(
    joined: dict[str, float], tmp_path: Path
) -> None:
    (tmp_path / "home" / "ray_bootstrap_config.yaml").unlink()
    with pytest.raises(UserError, match=r"1 worker\(s\) need 1 CPUs together and Ray has 0"):
        start_ray().trials_that_fit(workers=1, threads=1)


def test_a_local_ray_looks_at_no_cluster(joined: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    joined["CPU"] = 2.0
    assert start_ray() == Session("127.0.0.1:8265", 2, 0)


def test_only_what_is_new_is_told(tmp_path: Path) -> None:
    file, told = tmp_path / "news.log", list[str]()
    file.write_text("yesterday's\n")
    news = News(file, told.append)
    news.tell()
    with file.open("a") as opened:
        opened.write("no worker\nhalf a ")
    news.tell()
    news.tell()
    assert told == ["cluster     no worker"]
    with file.open("a") as opened:
        opened.write("line\n")
    news.tell()
    assert told[1:] == ["cluster     half a line"]


def test_a_file_that_is_missing_or_put_in_the_place_of_another_is_followed(tmp_path: Path) -> None:
    file, told = tmp_path / "news.log", list[str]()
    news = News(file, told.append)
    news.tell()
    file.write_text("first\n")
    news.tell()
    fresh = tmp_path / "fresh"
    fresh.write_text("of the next session, and longer\n")
    os.replace(fresh, file)
    news.tell()
    file.write_text("cut\n")
    news.tell()
    file.unlink()
    news.tell()
    assert told == [f"cluster     {line}" for line in ("first", "of the next session, and longer", "cut")]


def test_what_the_fallback_tells_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two ends agree about the file."""
    (tmp_path / "monitor.log").touch()
    config = written(tmp_path, cluster(a={"resources": {"CPU": 1}}))
    service = Service(config, tmp_path, lambda line: None)
    news = News(tmp_path / NEWS)
    with (tmp_path / "monitor.log").open("a") as log:
        log.write("Failed to launch 1 nodes of type a: Node Launch Exception (InsufficientInstanceCapacity): none\n")
    service.turn()
    news.tell()
    said = capsys.readouterr().out
    assert said.startswith("cluster     ")
    assert "No worker can be launched: a (InsufficientInstanceCapacity)" in said
