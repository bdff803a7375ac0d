"""The model behind the endpoint: warm-up, swap, health; and the settings that lead to it."""

import asyncio
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tyro

from data.errors import UserError
from data.images import Failure
from models.bundle import BundleInfo
from models.predictor import Prediction, Predictor
from serve import endpoint as endpoint_module
from serve.endpoint import Answer, Answered, Endpoint, Image, Loaded, Model, load_predictor
from serve.errors import ApiError
from serve.settings import CandidateConfig, EndpointConfig, ServeConfig, pinned
from tests.serving import picture, write_tiny_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        write_tiny_bundle(str(folder / name), seed=seed)
    return str(folder / "first"), str(folder / "second")


def in_service(endpoint: Endpoint) -> Loaded:
    assert endpoint.active is not None
    return endpoint.active


def test_images_of_a_request_keep_their_model_through_a_swap(bundles: tuple[str, str]) -> None:
    async def run() -> list[Answer]:
        endpoint = Endpoint()
        await endpoint.reconfigure({"bundle": bundles[0]})
        before = in_service(endpoint)
        await endpoint.reconfigure({"bundle": bundles[1]})
        after = in_service(endpoint)
        jobs = [endpoint.answer(loaded.model, [picture(1)]) for loaded in (before, after, before)]
        jobs.append(endpoint.answer(after.model, [b""]))
        return [answer for answers in await asyncio.gather(*jobs) for answer in answers]

    answers = asyncio.run(run())
    first, second = (Predictor.load(bundle).predict_bytes([picture(1)])[0] for bundle in bundles)
    for answer, expected in zip(answers, (first, second, first), strict=False):
        assert isinstance(answer, Prediction)
        assert isinstance(expected, Prediction)
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert isinstance(answers[3], Failure)


def test_a_model_that_does_not_load_leaves_the_one_in_service(bundles: tuple[str, str], tmp_path: Path) -> None:
    async def run() -> None:
        endpoint = Endpoint()
        await endpoint.reconfigure({"bundle": bundles[0]})
        before = endpoint.active
        for wrong in ({"bundle": str(tmp_path)}, {"bundle": bundles[1], "max_files": "many"}, {"bundel": "x"}, None):
            with pytest.raises(UserError):
                await endpoint.reconfigure(wrong)
            assert endpoint.active is before

    asyncio.run(run())


def test_equal_settings_do_not_load_again(bundles: tuple[str, str]) -> None:
    """Ray calls reconfigure again when a replica's rank changes."""
    loads: list[EndpointConfig] = []

    def load(config: EndpointConfig) -> Model:
        loads.append(config)
        return load_predictor(config)

    async def run() -> None:
        endpoint = Endpoint(load)
        for _ in range(2):
            await endpoint.reconfigure({"bundle": bundles[0]})
        before = in_service(endpoint)
        await endpoint.reconfigure({"bundle": bundles[0], "max_files": 3})
        after = in_service(endpoint)
        assert after.model is before.model
        assert after.config.max_files == 3
        await endpoint.reconfigure({"bundle": bundles[0], "max_batch_size": 3})

    asyncio.run(run())
    assert [config.max_batch_size for config in loads] == [16, 3]


def test_a_path_that_holds_another_model_by_now_is_not_loaded(bundles: tuple[str, str], tmp_path: Path) -> None:
    place = tmp_path / "bundle"

    async def run() -> None:
        shutil.copytree(bundles[0], place)
        first = Endpoint()
        await first.reconfigure({"bundle": str(place)})
        model = in_service(first).info.id
        asked = {"bundle": str(place), "model": model}
        await first.reconfigure(asked)
        shutil.rmtree(place)
        shutil.copytree(bundles[1], place)
        await first.reconfigure({**asked, "max_files": 3})  # the model in service is the right one
        assert in_service(first).info.id == model
        late = Endpoint()
        with pytest.raises(UserError, match=f"not {model}, which was chosen from it: put its files back"):
            await late.reconfigure(asked)
        assert late.active is None
        await late.reconfigure({"bundle": str(place)})
        other = in_service(late).info.id
        await first.reconfigure({**asked, "model": other})  # asked for by its id, at the same path
        assert in_service(first).info.id == other

    asyncio.run(run())


class Bent:
    """A model whose answers are bent by the test."""

    def __init__(self, predictor: Predictor, answer: Answer) -> None:
        self._predictor = predictor
        self._answer = answer

    @property
    def info(self) -> BundleInfo:
        return self._predictor.info

    def predict(self, images: Sequence[Image]) -> list[Answer]:
        return [self._answer for _ in images]


@pytest.mark.parametrize(
    "answer",
    [
        Failure("not_a_number", "the network gave no number"),
        Prediction("crab", 0.5, (0.5, 0.5), None),
        Prediction("crab", float("nan"), (float("nan"), 0.5, 0.5), None),
        Prediction("crab", 0.5, (0.5, 0.1, 0.1), None),
    ],
)
def test_a_model_that_answers_nonsense_does_not_come_into_service(bundles: tuple[str, str], answer: Answer) -> None:
    endpoint = Endpoint(lambda config: Bent(Predictor.load(config.bundle), answer))
    with pytest.raises(UserError, match="warm-up image"):
        asyncio.run(endpoint.reconfigure({"bundle": bundles[0]}))
    assert endpoint.active is None
    with pytest.raises(RuntimeError, match="no model"):
        endpoint.check_health()


def test_the_event_loop_is_free_while_a_batch_runs(bundles: tuple[str, str]) -> None:
    async def run() -> int:
        endpoint = Endpoint()
        await endpoint.reconfigure({"bundle": bundles[0]})
        model = in_service(endpoint).model
        batch = asyncio.ensure_future(endpoint.answer(model, [picture(seed, 600) for seed in range(8)]))
        turns = 0
        while not batch.done():
            await asyncio.sleep(0)
            turns += 1
        assert len(await batch) == 8
        return turns

    assert asyncio.run(run()) > 10


def test_a_batch_that_hangs_makes_the_replica_unhealthy(
    bundles: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        endpoint = Endpoint()
        await endpoint.reconfigure({"bundle": bundles[0]})
        endpoint.check_health()
        model = in_service(endpoint).model
        batch = asyncio.ensure_future(endpoint.answer(model, [picture(1, 2000)] * 8))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(endpoint_module, "_STUCK_AFTER_S", 0.0)
        with pytest.raises(RuntimeError, match="running for more than"):
            endpoint.check_health()
        await batch
        endpoint.check_health()

    asyncio.run(run())


def test_more_images_than_may_wait_are_refused_with_a_word_when_to_come_back(
    bundles: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "_MOST_WAITING", 4)

    async def run() -> list[Answered | BaseException]:
        endpoint = Endpoint()
        await endpoint.reconfigure({"bundle": bundles[0], "max_files": 2, "max_batch_size": 1})
        asked = (endpoint.predict([picture(1, 400), picture(2)], str(number)) for number in range(6))
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(run())
    refused = [answer for answer in answers if isinstance(answer, ApiError)]
    assert 0 < len(refused) < 6
    assert all(isinstance(answer, ApiError | Answered) for answer in answers)
    for one in refused:
        assert (one.status, one.code, one.headers) == (503, "overloaded", {"retry-after": "1"})


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be >= 1, got 0"),
        ({"rate_limit": -1.0}, "rate_limit must be >= 0, got -1"),
        ({"rate_limit": float("nan")}, "rate_limit must be >= 0, got nan"),
        ({"name": "a/b"}, "name must be 1 to 63 letters"),
        ({"auth": "none"}, "auth must be one of keys, off"),
        ({"max_body_mb": 0.0}, "max_body_mb must be > 0 and finite, got 0"),
        ({"device": "tpu"}, "device must be one of cpu, cuda, got tpu"),
        ({"bundle": ""}, "bundle must name"),
    ],
)
def test_endpoint_settings_check_themselves(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        EndpointConfig(**{"bundle": "b", **values})


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"port": 0}, "port must be in 1-65535, got 0"),
        ({"min_replicas": -1}, "min_replicas must be >= 0, got -1"),
        ({"min_replicas": 0, "max_replicas": 0}, "max_replicas must be >= 1"),
        ({"tls_cert": "c.pem"}, "tls_cert and tls_key must be given together"),
        ({"max_replicas": 2, "min_replicas": 3}, "max_replicas must be >= min_replicas"),
        ({"shutdown_s": 0.0}, "shutdown_s must be > 0"),
        ({"request_timeout_s": 30.0}, "request_timeout_s must be > body_timeout_s"),
    ],
)
def test_serve_settings_check_themselves(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ServeConfig(EndpointConfig("b"), **values)


def test_arguments_of_serve_run_are_texts_and_become_settings() -> None:
    config = ServeConfig.from_arguments({"bundle": "b", "max_batch_size": "4", "max_replicas": "3", "auth": "off"})
    assert config == ServeConfig(EndpointConfig("b", max_batch_size=4, auth="off"), max_replicas=3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "bundle"),
        ({"bundle": "b", "replicas": "2"}, "unknown setting replicas"),
        ({"bundle": "b", "max_replicas": "many"}, "max_replicas"),
        ({"bundle": "b", "max_replicas": "0"}, "max_replicas must be >= 1"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        ServeConfig.from_arguments(arguments)
    assert "\n" not in str(caught.value)


def test_settings_survive_the_way_through_user_config() -> None:
    candidate = CandidateConfig(bundle="c", promotion="p1", share=0.1)
    config = EndpointConfig("b", threads=2, max_body_mb=1.5, cache_dir="/c", candidate=candidate)
    assert EndpointConfig.from_user_config(json.loads(json.dumps(config.as_user_config()))) == config
    assert set(config.as_user_config()) == {field.name for field in dataclasses.fields(EndpointConfig)}


def test_paths_and_threads_are_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = ServeConfig(EndpointConfig("runs/b"), cpus_per_replica=3.5).resolved()
    assert resolved.endpoint.bundle == str(tmp_path / "runs" / "b")
    assert resolved.endpoint.threads == 3
    assert resolved.endpoint.cache_dir == ""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    resolved = ServeConfig(EndpointConfig("b", cache_dir="~/copies")).resolved()
    assert resolved.endpoint.cache_dir == str(tmp_path / "home" / "copies")


def test_a_link_is_followed_once(tmp_path: Path) -> None:
    first, latest = tmp_path / "first", tmp_path / "latest"
    (first / "bundle").mkdir(parents=True)
    latest.symlink_to(first)
    resolved = ServeConfig(EndpointConfig(f"{latest}/bundle", previous=f"{latest}/bundle")).resolved()
    assert resolved.endpoint.bundle == resolved.endpoint.previous == os.path.realpath(first / "bundle")
    assert pinned("s3://bucket/latest/bundle/") == "s3://bucket/latest/bundle"
    assert ServeConfig(EndpointConfig("b")).resolved().endpoint.previous == ""


def test_nobody_names_the_model_on_the_command_line() -> None:
    with pytest.raises(SystemExit):
        tyro.cli(ServeConfig, args=["--bundle", "b", "--model", "abc"], config=(tyro.conf.OmitArgPrefixes,))
