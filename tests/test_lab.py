"""What the lab lays over cluster.yaml still fits it, and its counting of lost epochs counts."""

import argparse
import copy
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from serve.running.ingress import tuning
from serve.settings import EndpointConfig, ServeConfig
from tests.cloud import account
from tests.commands import ROOT
from tune.spending import Spending
from tune.trials import trial_table

LAB = ROOT / "benchmarks" / "lab"
NAMES = {"subnets": '["subnet-1", "subnet-2"]', "group": "sg-1", "venv": "/image/venv"}
MODULES = ("labhosts", "usercommands", "searches", "machines", "endpoints", "run", "prepare", "asking")


@pytest.fixture(scope="module")
def lab() -> Iterator[dict[str, ModuleType]]:
    """The files of benchmarks/lab, which import each other by name, as its command does."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(LAB))
        yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def config(lab: dict[str, ModuleType]) -> dict[str, Any]:
    """cluster.yaml as the lab runs it."""
    overlay = yaml.safe_load((LAB / "overlay.yaml").read_text())
    found: dict[str, Any] = lab["labhosts"].overlaid((ROOT / "cluster.yaml").read_text(), overlay, NAMES)
    return found


def test_the_overlay_fits_the_committed_file(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))
    text = json.dumps(config)
    assert "UNSET" not in text
    assert "00000000000" not in text
    assert "192.0.2.1" not in text
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SubnetIds"] == ["subnet-1", "subnet-2"]
        assert kind["node_config"]["SecurityGroupIds"] == ["sg-1"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in _types(config).items()}
    assert profiles.pop("head") == "eagleray-lab-head"
    assert set(profiles.values()) == {"eagleray-lab"}


def _types(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["available_node_types"]
    return found


def test_the_roles_of_the_lab_have_the_policies_that_create_makes(
    lab: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cluster.yaml").write_text((ROOT / "cluster.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    with account(monkeypatch) as cloud:
        assert lab["prepare"].main() == 0
        assert lab["prepare"].main() == 0, "a second time"
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(said["subnets"]) == 2
        head, worker = (
            json.dumps(cloud.iam.get_role_policy(RoleName=name, PolicyName="eagleray")["PolicyDocument"])
            for name in ("eagleray-lab-head", "eagleray-lab")
        )
    assert "ec2:RunInstances" in head
    assert 'role/eagleray-lab"' in head, "it may hand the workers their role"
    assert "arn:aws:s3:::eagleray-lab/*" in head
    assert "arn:aws:s3:::eagleray-lab/*" in worker
    assert "ec2:" not in worker


@pytest.mark.parametrize("text", ["--ttl 12h", "EAGLERAY_METRICS=0"])
def test_what_subcommands_replace_is_in_it(config: dict[str, Any], text: str) -> None:
    assert text in yaml.safe_dump(config, sort_keys=False, width=10_000)


def test_a_text_that_is_gone_from_the_file_is_told(lab: dict[str, ModuleType]) -> None:
    overlay = {"fill": {}, "replace": {"was here": "x"}, "merge": {}}
    with pytest.raises(SystemExit, match=r"'was here' is not in cluster\.yaml"):
        lab["labhosts"].overlaid("cluster_name: x", overlay, {})


def test_the_endpoint_of_the_lab_is_one_that_the_nodes_were_started_for(lab: dict[str, ModuleType]) -> None:
    deployed = yaml.safe_load((ROOT / "serve/oncluster.yaml").read_text())
    arguments = deployed["applications"][0]["args"] | lab["endpoints"]._SMALL
    assert tuning(ServeConfig.from_arguments(arguments)) == tuning(ServeConfig(EndpointConfig("b")))


def test_what_is_copied_to_the_laptop_exists(lab: dict[str, ModuleType]) -> None:
    hosts = lab["labhosts"]
    assert hosts.ROOT == ROOT
    assert all((ROOT / name).exists() for name in (*hosts.PACKAGES, *hosts.FILES))
    assert all((LAB / name).is_file() for name in hosts.SCRIPTS)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([1, 2, 3, 4], 0),  # the epoch under way was lost, and it was not reported
        ([1, 2, 2, 3], 1),
        ([1, 2, 3, 2, 3], 2),
        ([1, 2, 2, 2], 2),  # twice the same
        ([1], 0),
        ([], 0),
    ],
)
def test_an_epoch_that_was_reported_twice_was_lost(
    lab: dict[str, ModuleType], epochs: list[int], expected: int
) -> None:
    rows = {(0, 100 + 10 * place, epoch) for place, epoch in enumerate(epochs)} | {(1, 100, 1), (1, 200, 2)}
    assert lab["searches"].again(rows, 100, 300) == expected


def test_a_loss_counts_for_the_failure_before_it(lab: dict[str, ModuleType]) -> None:
    rows = {(0, 100, 1), (0, 110, 1), (0, 120, 2), (0, 130, 2)}
    assert [lab["searches"].again(rows, begin, end) for begin, end in ((90, 115), (115, 140))] == [1, 1]


def test_each_column_of_a_table_of_trials_is_compared_or_measured(lab: dict[str, ModuleType]) -> None:
    commands = lab["usercommands"]
    columns = list(Spending().with_costs(trial_table([], ("learning_rate", "pause_s"))).columns)
    assert set(columns) == {"trial", "learning_rate", "pause_s", *commands.SCORES, *commands.MEASURED}
    one = [dict.fromkeys(columns, "1")]
    assert commands.hyperparameters(one) == ["learning_rate", "pause_s"]
    differ = {column for column in columns if commands.differing(one, [{**one[0], column: "2"}]) == [column]}
    assert differ == set(columns) - commands.MEASURED
    with pytest.raises(AssertionError, match="1 trials and 2"):
        commands.differing(one, one * 2)


@pytest.mark.parametrize("gone", ["learning_rate", "validation_loss", "seconds"])
def test_a_column_that_is_gone_is_not_taken_for_the_same(lab: dict[str, ModuleType], gone: str) -> None:
    columns = list(trial_table([], ("learning_rate",)).columns)
    one = [dict.fromkeys(columns, "1")]
    less = [{column: "1" for column in columns if column != gone}]
    for pair in ((one, less), (less, one), (less, less)):
        with pytest.raises(AssertionError, match=r"columns|no hyperparameters"):
            lab["usercommands"].differing(*pair)


def test_whatever_a_caller_meets_with_is_a_request_that_failed(lab: dict[str, ModuleType], tmp_path: Path) -> None:
    asking, stop, asked = lab["asking"], tmp_path / "stop", lab["asking"].Asked()

    class Client:
        turns = 0

        def predict(self, _: object) -> Any:
            self.turns += 1
            if self.turns == 3:
                stop.touch()
            raise ValueError("something new")

    asking.ask(Client(), asked, 0, stop)
    told = asked.told()
    assert (told["answered"], told["failed"]) == (0, 3)
    assert told["errors"][0] == "ValueError: something new"


def test_a_panel_that_stays_empty_is_named(lab: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints = lab["endpoints"]
    seen = iter([{"data": [], "none": ["Spent"]}, {"data": ["Spent"], "none": [*endpoints._MAY_BE_EMPTY]}])
    monkeypatch.setattr(endpoints, "_panels", lambda lab, file: next(seen))
    assert endpoints._shown(Waiting(), "x.json") == 1
    monkeypatch.setattr(endpoints, "_panels", lambda lab, file: {"data": [], "none": ["Spent"]})
    with pytest.raises(AssertionError, match=r"no data in panels of x\.json: \['Spent'\]"):
        endpoints._shown(Waiting(), "x.json")


class Waiting:
    """A lab that waits for three looks."""

    def wait(self, what: str, is_so: Callable[[], Any], seconds: float) -> float:
        if not any(is_so() for _ in range(3)):
            raise TimeoutError(what)
        return 0.0

    def say(self, text: str) -> None:
        """Nobody listens."""


def test_the_panels_that_may_be_empty_are_panels(lab: dict[str, ModuleType]) -> None:
    files = ("tune/grafana.json", "serve/watching/grafana.json")
    titles = {panel["title"] for file in files for panel in json.loads((ROOT / file).read_text())["panels"]}
    assert set(lab["endpoints"]._MAY_BE_EMPTY) <= titles


def test_what_does_not_hold_is_told_and_the_rest_goes_on(
    lab: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(given: argparse.Namespace) -> dict[str, Any]:
        """It does not hold."""
        raise AssertionError("two were left")

    run = lab["run"]
    monkeypatch.setattr(run, "COMMANDS", {"one": fails, "two": lambda given: {"left": 0}})
    monkeypatch.setattr(run, "missing", lambda given: "")
    monkeypatch.setattr(sys, "argv", ["run.py", "all", "--lab", "/nowhere"])
    assert run.main() == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert lines == [{"command": "one", "failed": "two were left"}, {"command": "two", "left": 0}]


def test_where_the_lab_cannot_run_it_says_why(
    lab: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["run.py", "search", "--lab", "/nowhere"])
    assert lab["run"].main() == 0
    assert "there is no lab.py in /nowhere" in capsys.readouterr().out
