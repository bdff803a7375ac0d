"""What Prometheus sees of a search under way: through Ray's metrics port, and in a real Prometheus that scrapes it."""

import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray.tune
from ray.tune.logger import JsonLoggerCallback

import tune.gauges
from tests.scraping import PATIENCE_S, asked, eventually, prometheus, scraped
from tune.budget import Meter, Node
from tune.gauges import STATES, SearchGauges
from tune.objectives import ACCURACY
from tune.outputs import RunFolder
from tune.prices import Kind, Price, PriceTable
from tune.progress import SearchLog
from tune.space import NUMBER
from tune.trials import best_row

pytestmark = pytest.mark.ray

DASHBOARD = Path(str(tune.gauges.__file__)).with_name("grafana.json")


class Pretended(ray.tune.Trainable):
    """A trial that reports as ours do and trains nothing; some fail, some stand still until the gate opens."""

    def setup(self, config: dict[str, Any], gate: str = "") -> None:
        self._number, self._gate = config[NUMBER], gate

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._number = new_config[NUMBER]
        return True

    def step(self) -> dict[str, Any]:
        epoch = self.iteration + 1
        if self._number == 1:
            return {ACCURACY.metric: 0.0, "failure": "planted", "done": True}
        until = time.monotonic() + 2 * PATIENCE_S
        while self._number >= 2 and epoch == self._number and not os.path.exists(self._gate):
            assert time.monotonic() < until, "nobody opened the gate"
            time.sleep(0.05)
        scores = {"best_epoch": 1, "best_validation_loss": 0.5, "training_accuracy": 0.9, "validation_loss": 0.6}
        paces = {"images_per_second": 100.0 + self._number, "cpu_seconds": 1.5 * epoch}
        ended = epoch == 3
        accuracy = {ACCURACY.metric: 0.5 + self._number / 10}
        return {**scores, **paces, **accuracy, "epoch": epoch, "finished": ended, "done": ended}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """There is nothing to keep."""


@dataclass(frozen=True)
class UnderWay:
    """A search two of whose trials are in the middle of an epoch."""

    name: str
    folder: Path
    meter: Meter

    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "trials.csv")


@pytest.fixture(scope="module")
def search(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnderWay]:
    folder = tmp_path_factory.mktemp("searches") / "gauged"
    folder.mkdir()
    run, gate = RunFolder(str(folder), str(folder)), folder / "gate"
    rented = Node("head", Kind("a1.big", "moon"), time.time())
    meter = Meter(PriceTable((Price(Kind("a1.big", "moon"), 36.0, 0.0),)), lambda: [rented])
    meter.read()
    gauges = SearchGauges(run)
    gauges.meter = meter
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(Pretended, gate=str(gate)), {"cpu": 1}),
        param_space={NUMBER: ray.tune.grid_search(list(range(5)))},
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            callbacks=[SearchLog(run, names=(), total=5), gauges, JsonLoggerCallback()],
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AIR_NEW_OUTPUT", "0")
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        fitting = threading.Thread(target=tuner.fit)
        fitting.start()
        try:
            yield UnderWay(folder.name, folder, meter)
        finally:
            gate.touch()
            fitting.join(PATIENCE_S)
    assert not fitting.is_alive()


def said(table: pd.DataFrame, meter: Meter) -> dict[str, float]:
    """What the gauges must say where trials.csv says this."""
    best = best_row(table)
    assert best is not None
    return {
        "best_value": best["validation_accuracy"],
        "images_per_second": table.loc[table["status"] == "running", "images_per_second"].sum(),
        "cpu_seconds": table["cpu_seconds"].sum(),
        "epochs": table["epochs_run"].sum(),
        "spent_usd": meter.usd,
        **{f"trials {state}": float((table["status"] == state).sum()) for state in STATES},
    }


def told(name: str) -> dict[str, float]:
    """The search's gauges as Ray's metrics port gives them; {} while there are none."""
    found = {}
    for gauge, labels, value in scraped("ray_eagleray_"):
        if labels.get("search") == name:
            state = labels.get("state")
            found[gauge.removeprefix("ray_eagleray_") + (f" {state}" if state else "")] = value
    return found


def standing_still(search: UnderWay) -> pd.DataFrame:
    """The table once trial 2 waits in its second and trial 3 in its third epoch."""

    def rows() -> list[tuple[str, float]]:
        if not (search.folder / "trials.csv").exists():
            return []
        table = search.table()
        return list(zip(table["status"], table["epochs_run"].fillna(0), strict=True))

    wanted = [("finished", 3), ("failed", 0), ("running", 1), ("running", 2)]
    assert eventually(rows, lambda answer: answer[:4] == wanted)[:4] == wanted
    return search.table()


def test_the_gauges_agree_with_the_table_in_the_middle_of_a_search(search: UnderWay) -> None:
    expected = said(standing_still(search), search.meter)
    assert expected["best_value"] == 0.8
    assert expected["images_per_second"] == 102 + 103
    assert expected["spent_usd"] > 0
    assert [expected[f"trials {state}"] for state in ("running", "finished", "failed")] == [2, 1, 1]
    assert eventually(lambda: told(search.name), lambda values: values == expected) == expected


def queries() -> list[str]:
    """Every query of the dashboard, with what Grafana would fill in for its variables."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    return [expression.replace("$search", ".+").replace("$__range", "1h") for expression in expressions]


@pytest.mark.prometheus
def test_every_query_of_the_dashboard_has_data(search: UnderWay, tmp_path: Path) -> None:
    def of_search(expression: str) -> list[float]:
        return [value for labels, value in asked(client, expression) if labels["search"] == search.name]

    with prometheus(tmp_path) as client:
        assert len(queries()) >= 6
        for expression in queries():
            assert eventually(lambda expression=expression: of_search(expression), bool), expression  # type: ignore[misc]
        best = of_search("max by (search) (ray_eagleray_best_value)")
        assert best == [said(standing_still(search), search.meter)["best_value"]]
        names = client.get("/api/v1/label/search/values", params={"match[]": "ray_eagleray_trials"}).json()
        assert search.name in names["data"]


def test_the_dashboard_shows_every_gauge_and_no_other() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    text = " ".join(queries())
    for name in tune.gauges._GAUGES:
        assert f"ray_{name}" in text
    assert text.count("ray_eagleray") == sum(text.count(f"ray_{name}{{") for name in tune.gauges._GAUGES)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "search"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in dashboard["panels"])


def test_the_callback_is_pickled_without_the_meter_and_the_gauges(tmp_path: Path) -> None:
    gauges = SearchGauges(RunFolder(str(tmp_path / "mine"), str(tmp_path / "mine")))
    gauges.meter = Meter(PriceTable(()), list)
    again = pickle.loads(pickle.dumps(gauges))
    assert (again.search, again.meter) == ("mine", None)
