"""A promotion from its first look to its last change, over replicas in this process, with users who ask all along."""

import dataclasses
from collections.abc import Sequence

import pytest

from data.errors import UserError
from data.images import Pixels
from serve.promotion.goldenstage import GoldenStage
from serve.promotion.serveapi import Application
from tests.promoting import STAGES, previous, promote
from tests.promotions import NAN, Cluster, cluster, other_classes
from tests.serving import picture

__all__ = ["cluster"]


def test_a_good_model_comes_into_service(cluster: Cluster) -> None:
    said: list[str] = []
    outcome = promote(cluster, said=said)
    assert outcome.result == "promoted"
    assert outcome.done
    assert outcome.model == "new"
    assert "--rollback goes back to old" in outcome.reason
    assert outcome.bundle == "new"
    assert cluster.user_config == {"bundle": "new", "model": "new", "auth": "off", **previous("old")}
    assert [(stage["stage"], stage["passed"]) for stage in outcome.stages] == [
        (name, True) for name in ("golden", *STAGES, "full")
    ]
    assert len(cluster.changes) == 4
    assert [lab.loads for lab in cluster.labs] == [["old", "new"]] * 2  # it is not loaded a second time
    cluster.sleep(1)
    assert cluster.answered[0] == "old"
    assert set(cluster.answered[-40:]) == {"new"}
    assert any(line.startswith("canary: ") and "labels agree" in line for line in said)


def test_its_share_grows_stage_by_stage(cluster: Cluster) -> None:
    begins: list[int] = []
    cluster.events = [(name, lambda: begins.append(len(cluster.answered))) for name in STAGES]
    promote(cluster)
    shadow, canary, watch = begins
    assert set(cluster.answered[:shadow]) == {"old"}
    assert set(cluster.answered[canary - 40 : canary]) == {"old", "new"}
    assert set(cluster.answered[watch - 40 :]) == {"new"}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("fault", "why"),
    [("raises", "failed in"), ("nan", "without a number"), ("disagrees", "the label of"), ("slow", "times as long")],
)
def test_a_bad_model_is_taken_out_at_any_stage(cluster: Cluster, stage: str, fault: str, why: str) -> None:
    """And no user sees an error: the cluster asserts it for each of their requests."""

    def turn_bad() -> None:
        match fault:
            case "raises":
                cluster.new.answer = cluster.new.raises
            case "nan":
                cluster.new.answer = lambda: NAN
            case "disagrees":
                cluster.new.label = "anemone"
            case "slow":
                cluster.new.seconds *= 10

    cluster.events = [(stage, turn_bad)]
    outcome = promote(cluster, min_requests=100)
    assert outcome.result == "rolled back"
    assert not outcome.done
    assert why in outcome.reason
    assert outcome.model == "old"
    assert outcome.stages[-1]["stage"] == stage
    assert not outcome.stages[-1]["passed"]
    assert cluster.user_config["bundle"] == "old"
    assert cluster.user_config["candidate"] is None
    cluster.sleep(1)
    assert set(cluster.answered[-40:]) == {"old"}


def test_one_with_other_classes_never_answers(cluster: Cluster) -> None:
    other_classes(cluster.new)
    outcome = promote(cluster)
    assert outcome.result == "rolled back"
    assert "its classes are not those in service (new: sponge; gone: " in outcome.reason
    cluster.sleep(1)
    assert set(cluster.answered) == {"old"}


def test_one_that_was_changed_since_it_was_checked_is_taken_out(cluster: Cluster) -> None:
    checked = GoldenStage(dataclasses.replace(cluster.new.info, id="checked"), (), (), ())
    outcome = promote(cluster, golden=checked)
    assert "a replica could not load it: new holds the model new now, not checked" in outcome.reason
    assert cluster.user_config["candidate"] is None


def test_what_the_golden_images_say_against_it_is_the_end(cluster: Cluster) -> None:
    outcome = promote(cluster, golden=GoldenStage(cluster.new.info, (), ("no number for image 3",), ()))
    assert (outcome.result, outcome.reason) == ("refused", "no number for image 3")
    assert cluster.changes == []


def test_without_enough_requests_nothing_is_changed(cluster: Cluster) -> None:
    cluster.requests_a_second = 0
    said: list[str] = []
    outcome = promote(cluster, stage_timeout_s=20, said=said)
    assert outcome.result == "stopped"
    assert outcome.bundle == ""
    assert (
        "shadow ... until 20 images of requests are compared, for 20 s at most (--min-requests, --stage-timeout-s); if "
        "nobody uses the endpoint, --without-traffic sends golden images"
    ) in said
    assert "0 of 20 images compared" in outcome.reason
    assert "--without-traffic" in outcome.reason
    assert cluster.user_config == {"bundle": "old", "model": "old", "auth": "off", **previous("")}


def test_golden_images_may_stand_in_for_users(cluster: Cluster) -> None:
    cluster.requests_a_second = 0
    sent: list[float] = []

    def traffic(images: Sequence[Pixels], share: float) -> None:
        sent.append(share)
        cluster._run(cluster._users_ask(20))

    image = picture(1)
    golden = GoldenStage(cluster.new.info, (), (), (image,))  # type: ignore[arg-type]
    said: list[str] = []
    assert promote(cluster, golden=golden, traffic=traffic, canary=0.5, said=said).result == "promoted"
    (canary,) = [line for line in said if line.startswith("canary ...")]
    assert "20 requests answered by the new model, which gets 50% of all, for 600 s at most" in canary
    assert canary.endswith("golden images are sent meanwhile")
    assert set(sent) == {0.0, 0.5, 1.0}


def test_golden_traffic_needs_golden_images(cluster: Cluster) -> None:
    outcome = promote(cluster, traffic=lambda images, share: None)
    assert outcome.result == "refused"
    assert "neither bundle has any" in outcome.reason


def test_the_bundle_in_service_is_not_promoted_over_itself(cluster: Cluster) -> None:
    outcome = promote(cluster, "old")
    assert outcome.result == "refused"
    assert "a folder of its own" in outcome.reason


def test_an_endpoint_in_trouble_is_left_alone(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    troubled = dataclasses.replace(cluster.application(), status="DEPLOY_FAILED", message="a replica died")
    monkeypatch.setattr(cluster, "application", lambda name="": troubled)
    begun = cluster.clock()
    outcome = promote(cluster)
    assert outcome.result == "refused"
    assert "the endpoint is DEPLOY_FAILED a replica died" in outcome.reason
    assert cluster.changes == []
    assert cluster.clock() == begun  # Ray has given up: there is nothing to wait for


@pytest.mark.parametrize("status", ["DEPLOYING", "UNHEALTHY"])
@pytest.mark.parametrize(("seconds", "result"), [(10, "promoted"), (1000, "refused")])
def test_a_replica_that_is_just_starting_is_waited_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, seconds: float, result: str, status: str
) -> None:
    """Load comes and goes, and replicas with it; one that has died is replaced."""
    whole, begun = cluster.application, cluster.clock()

    def growing(name: str = "") -> Application:
        if cluster.clock() >= begun + seconds:
            return whole(name)
        return dataclasses.replace(whole(name), status=status, starting=1, message="Upscaling from 1 to 3 replicas.")

    monkeypatch.setattr(cluster, "application", growing)
    said: list[str] = []
    outcome = promote(cluster, said=said)
    assert outcome.result == result
    waits = f"the endpoint is {status}: waiting 60 s at most for all its replicas to run"
    assert said.count(waits) == 1
    assert outcome.done or "Upscaling from 1 to 3 replicas.: wait until all its replicas run" in outcome.reason


def test_an_error_of_ours_takes_the_candidate_away(cluster: Cluster) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    cluster.events = [("canary", interrupt)]
    with pytest.raises(KeyboardInterrupt):
        promote(cluster)
    assert cluster.user_config["candidate"] is None


def test_a_replica_that_starts_in_the_middle_joins_in(cluster: Cluster, tiny_bundle: str) -> None:
    from tests.promotions import Lab

    def start() -> None:
        late = Lab(tiny_bundle, board=cluster.board, replica="late", clock=cluster.clock)
        late.models = cluster.labs[0].models
        cluster._run(late.endpoint.reconfigure(cluster.user_config))
        cluster.labs.append(late)

    cluster.events = [("canary", start)]
    assert promote(cluster).result == "promoted"
    cluster.sleep(1)
    assert set(cluster.answered[-30:]) == {"new"}
    assert cluster.labs[-1].loads == ["old", "new"]


def test_while_the_board_is_silent_a_promotion_waits(cluster: Cluster) -> None:
    """Its replicas judge alone meanwhile (test_serve_candidate_board.py)."""

    def fall_silent() -> None:
        cluster.silent, cluster.requests_a_second = True, 4

    cluster.events = [("canary", fall_silent)]
    outcome = promote(cluster, patience_s=60, stage_timeout_s=60)
    assert outcome.result == "stopped"
    assert cluster.user_config["bundle"] == "old"
    assert cluster.user_config["candidate"] is None


def test_an_endpoint_that_does_not_answer_is_not_changed(cluster: Cluster) -> None:
    cluster.silent, cluster.problem = True, "connection refused"
    with pytest.raises(UserError, match=r"does not answer \(connection refused\)"):
        promote(cluster)
    assert cluster.changes == []


def test_the_outcome_is_json(cluster: Cluster) -> None:
    import json

    told = json.loads(json.dumps(promote(cluster).as_dict()))
    assert told["result"] == "promoted"
    assert told["stages"][1]["counts"]["compared"] >= 20
