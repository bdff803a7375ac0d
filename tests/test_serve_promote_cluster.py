"""Promotions on a real Ray Serve: two replicas, users who ask all along, Ray's own REST API, the board as an actor."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.serve.config import HTTPOptions
from ray.serve.schema import ServeDeploySchema

import serve.promote
from models.bundle import read_info
from serve.client import Client
from serve.clientanswers import Answer
from serve.door.keystore import create_key
from serve.promotion.board import ACTOR_NAME, ACTOR_NAMESPACE, _Actor
from serve.promotion.endpointapi import EndpointApi
from serve.promotion.goldenstage import GoldenStage
from serve.promotion.judge import Limits
from serve.promotion.modelchange import ModelChange
from serve.promotion.serveapi import ServeApi, ray_token
from serve.promotion.stages import Plan, Promotion
from serve.settings import EndpointConfig, ServeConfig
from tests.changedbundles import add_golden, last_bias, permute, rewrite
from tests.serving import free_port, picture, write_tiny_bundle

pytestmark = pytest.mark.ray

PATIENCE_S = 120


@dataclass(frozen=True)
class Served:
    """A running endpoint, and the bundles that it may get."""

    url: str
    key: str
    dashboard: str
    old: str
    new: str
    permuted: str

    def change(self) -> ModelChange:
        return ModelChange(ServeApi(self.dashboard, ray_token()), EndpointApi(self.url, self.key), poll_s=0.3)

    def command(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code and result of serve/promote.py."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EAGLERAY_KEY", self.key)
            where = ["--endpoint", self.url, "--dashboard", self.dashboard, "--json"]
            patch.setattr("sys.argv", ["promote.py", *arguments, *where])
            code = serve.promote.main()
        return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def served(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import ray
    import ray.serve
    from ray.serve.context import _get_global_client

    folder = tmp_path_factory.mktemp("models")
    old, new, permuted = (str(folder / name) for name in ("old", "new", "permuted"))
    write_tiny_bundle(old)
    rewrite(old, new, lambda tensors: tensors[last_bias(tensors)].add_(1e-4))
    rewrite(old, permuted, permute)
    for bundle in (old, new):
        add_golden(bundle)
    key = create_key(str(folder / "keys.json"), "test").key
    port = free_port()
    endpoint = EndpointConfig(old, keys=str(folder / "keys.json"), max_batch_size=4)
    config = ServeConfig(endpoint, port=port, min_replicas=2, max_replicas=2, cpus_per_replica=0.5, shutdown_s=1)
    ray.serve.start(http_options=HTTPOptions(port=port))
    application = {
        "name": "eagleray",
        "route_prefix": "/",
        "import_path": "serve.app:app",
        "args": config.as_arguments(),
        "deployments": [{"name": "endpoint", "user_config": config.resolved().endpoint.as_user_config()}],
    }
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    node: Any = ray._private.worker.global_worker.node
    dashboard = str(node.address_info["webui_url"])
    made = Served(f"http://127.0.0.1:{port}", key, dashboard, old, new, permuted)
    until(lambda: Client(made.url).ready() and made.change().application().settled)
    yield made
    ray.serve.shutdown()


def until(done: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.2)


class Users:
    """Who asks all along; every request must be answered, at the first try."""

    def __init__(self, served: Served) -> None:
        self.models: list[str] = []
        self.errors: list[str] = []
        self._client = Client(served.url, served.key, retries=0)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(2)]

    def _ask(self, number: int) -> None:
        pictures = [picture(seed) for seed in range(number, number + 8)]
        for turn in itertools.count():
            if self._stop.is_set():
                return
            try:
                answer = self._client.predict(pictures[turn % len(pictures)])
                assert isinstance(answer, Answer)
                self.models.append(answer.model)
            except Exception as error:
                self.errors.append(repr(error))
            time.sleep(0.01)

    def __enter__(self) -> "Users":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def board_is_there() -> bool:
    import ray

    with contextlib.suppress(ValueError):
        ray.get_actor(ACTOR_NAME, namespace=ACTOR_NAMESPACE)
        return True
    return False


def replicas(served: Served) -> frozenset[str]:
    return served.change().application().replicas


def test_a_model_comes_into_service_and_goes_back_and_no_request_is_lost(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    before = replicas(served)
    old, new = read_info(served.old).id, read_info(served.new).id
    with Users(served) as users:
        limits = ("--min-requests", "20", "--max-latency-ratio", "20", "--canary", "0.3")
        code, told = served.command(capsys, served.new, *limits)
        assert (code, told["result"], told["model"]) == (0, "promoted", new)
        until(lambda: users.models[-1] == new)
        promoted = len(users.models)
        until(lambda: len(users.models) > promoted + 50)
        assert set(users.models[promoted:]) == {new}
        code, told = served.command(capsys, "--rollback")
        assert (code, told["result"], told["model"]) == (0, "went back", old)
        until(lambda: users.models[-1] == old)
    assert users.errors == []
    assert set(users.models) == {old, new}
    assert replicas(served) == before  # in place: no process was started
    until(lambda: not board_is_there())
    assert served.command(capsys, "--abort")[1]["result"] == "nothing to do"


def test_a_bad_model_is_taken_out_though_the_board_dies(served: Served) -> None:
    import ray

    old = read_info(served.old).id

    def blind(bundle: str, user_config: Mapping[str, Any]) -> GoldenStage:
        """A golden stage that sees nothing, so that the shadow traffic has to."""
        return GoldenStage(read_info(bundle), (), (), ())

    killed: list[bool] = []

    def kill_the_board(seconds: float) -> None:
        if not killed and board_is_there():
            ray.kill(ray.get_actor(ACTOR_NAME, namespace=ACTOR_NAMESPACE))
            killed.append(True)
        time.sleep(seconds)

    plan = Plan(Limits(max_latency_ratio=20, min_requests=200))
    change = served.change()
    change.sleep = kill_the_board
    with Users(served) as users:
        outcome = Promotion(change, plan, blind).run(served.permuted)
        assert outcome.result == "rolled back", outcome
        assert "the label of the model in service" in outcome.reason
    assert killed
    assert users.errors == []
    assert set(users.models) == {old}
    assert served.change().application().user_config["candidate"] is None


def test_without_a_key_nothing_begins(served: Served, tmp_path: Path) -> None:
    from data.errors import UserError

    change = ModelChange(ServeApi(served.dashboard, ray_token()), EndpointApi(served.url))
    with pytest.raises(UserError, match="refuses the key"):
        Promotion(change, Plan(Limits()), lambda bundle, config: pytest.fail("it began")).run(served.new)
    with pytest.raises(UserError, match="refuses the token"):
        ServeApi(served.dashboard).application()


def test_a_board_that_nobody_talks_to_ends_itself(ray_cluster: None) -> None:
    """As when all replicas have died in the middle of a promotion."""
    import ray

    kind: Any = ray.remote(_Actor)
    kind.options(name=ACTOR_NAME, namespace=ACTOR_NAMESPACE, lifetime="detached", num_cpus=0).remote(0.5)
    assert board_is_there()
    until(lambda: not board_is_there())
