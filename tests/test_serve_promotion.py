"""A promotion from its first look to its last change, over replicas in this process, with users who ask all along."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.images import Pixels
from serve.promotion.goldenstage import GoldenStage
from serve.promotion.judge import Limits
from serve.promotion.modelchange import EndedError, ModelChange, Outcome
from serve.promotion.serveapi import Application
from serve.promotion.stages import Plan, Promotion
from tests.promotions import LIMITS, NAN, Cluster, KilledError, cluster, other_classes
from tests.serving import picture

__all__ = ["cluster"]

STAGES = ("shadow", "canary", "watch")


def change(cluster: Cluster, patience_s: float = 600) -> ModelChange:
    return ModelChange(cluster, cluster, patience_s=patience_s, clock=cluster.clock, sleep=cluster.sleep)


def promote(
    cluster: Cluster,
    bundle: str = "new",
    *,
    golden: GoldenStage | None = None,
    traffic: Callable[[Sequence[Pixels], float], None] | None = None,
    said: list[str] | None = None,
    min_requests: int = 20,
    patience_s: float = 600,
    **plan: Any,
) -> Outcome:
    """With a golden stage that finds nothing: the bundles are toys."""

    def check(bundle: str, user_config: Mapping[str, Any]) -> GoldenStage:
        return golden or GoldenStage(cluster.new.info, ("looks good",), (), ())

    lines = [] if said is None else said
    limits = dataclasses.replace(Limits(**LIMITS), min_requests=min_requests)
    whole = Plan(limits, **{"canary": 0.3, "stage_timeout_s": 600, **plan})
    return Promotion(change(cluster, patience_s), whole, check, traffic=traffic, say=lines.append).run(bundle)


def previous(name: str) -> dict[str, Any]:
    """A toy's bundle is named like its model."""
    return {"previous": name, "previous_model": name, "candidate": None}


def test_a_good_model_comes_into_service(cluster: Cluster) -> None:
    said: list[str] = []
    outcome = promote(cluster, said=said)
    assert outcome.result == "promoted"
    assert outcome.done
    assert outcome.model == "new"
    assert "--rollback goes back to old" in outcome.reason
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
    assert "it knows the classes" in outcome.reason
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
    outcome = promote(cluster, stage_timeout_s=20)
    assert outcome.result == "stopped"
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
    assert promote(cluster, golden=golden, traffic=traffic, canary=0.5).result == "promoted"
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
    troubled = dataclasses.replace(cluster.application(), status="UNHEALTHY", message="a replica died")
    monkeypatch.setattr(cluster, "application", lambda name="": troubled)
    outcome = promote(cluster)
    assert outcome.result == "refused"
    assert "the endpoint is UNHEALTHY a replica died" in outcome.reason
    assert cluster.changes == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_command_that_dies_leaves_an_endpoint_that_answers(cluster: Cluster, stage: str) -> None:
    cluster.requests_a_second = 8
    cluster.events = [(stage, cluster.kill)]
    with pytest.raises(KilledError):
        promote(cluster)
    cluster.revive()
    cluster.sleep(1)
    assert cluster.user_config["bundle"] == "old"
    # The verdict is obeyed without the command.
    cluster.new.answer = cluster.new.raises
    cluster.sleep(1)
    assert cluster.statuses() == {"dropped"}
    cluster.sleep(1)
    assert set(cluster.answered[-8:]) == {"old"}
    # The next command refuses while the last may be alive, then clears away what it left.
    outcome = promote(cluster)
    assert outcome.result == "refused"
    assert "led by another command" in outcome.reason
    assert cluster.user_config["candidate"] is not None
    cluster.clock.now += 60
    cluster.new.answer = cluster.new._prediction
    assert promote(cluster).result == "promoted"


def test_a_second_promotion_is_refused_and_harms_nobody(cluster: Cluster) -> None:
    second: list[Outcome] = []
    cluster.events = [("canary", lambda: second.append(promote(cluster)))]
    assert promote(cluster).result == "promoted"
    assert second[0].result == "refused"
    assert "is under way" in second[0].reason


def leave(cluster: Cluster, name: str = "other") -> None:
    """A command's first change, and no question yet."""
    other = {"bundle": "new", "promotion": name, "share": 0.0, **LIMITS}
    cluster.put({**cluster.user_config, "candidate": other})


def test_one_that_has_just_begun_is_not_taken_for_a_leftover(cluster: Cluster) -> None:
    """Its command's first question comes seconds after its first change."""
    leave(cluster)
    cluster.requests_a_second = 0
    slept = cluster.sleep
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        slept(seconds)
        looks.append(seconds)
        if len(looks) == 5:
            cluster.promotion(watching="other")

    cluster.sleep = sleep  # type: ignore[method-assign]
    outcome = promote(cluster)
    assert outcome.result == "refused"
    assert "led by another command" in outcome.reason
    assert len(looks) == 5
    assert cluster.user_config["candidate"]["promotion"] == "other"


def test_one_that_nobody_ever_asked_about_is_cleared_away_once_it_is_old_enough(cluster: Cluster) -> None:
    leave(cluster)
    cluster.promotion()
    cluster.requests_a_second = 8
    begun, said = cluster.clock.now, list[str]()
    cleared: list[float] = []
    put = cluster.put

    def see(wanted: Mapping[str, Any]) -> None:
        cleared.append(cluster.clock.now)
        put(wanted)

    cluster.put = see  # type: ignore[method-assign]
    assert promote(cluster, said=said).result == "promoted"
    assert "clearing away promotion other, whose command is gone" in said
    assert cleared[0] >= begun + 30


def test_what_takes_the_place_of_a_leftover_is_not_cleared_away(cluster: Cluster) -> None:
    leave(cluster)
    with pytest.raises(EndedError, match="another promotion has taken its place"):
        change(cluster).abort("older")
    assert cluster.user_config["candidate"]["promotion"] == "other"
    assert change(cluster).abort("other").result == "aborted"


def test_of_two_that_begin_at_once_one_goes_on(cluster: Cluster) -> None:
    """Ray takes the later PUT. Who finds another's candidate leaves it alone."""
    other = {"bundle": "new", "promotion": "other", "share": 0.0, **LIMITS}
    cluster.events = [("shadow", lambda: cluster.put({**cluster.user_config, "candidate": other}))]
    outcome = promote(cluster)
    assert outcome.result == "stopped"
    assert outcome.reason == "another promotion has taken its place"
    assert cluster.user_config["candidate"] == other


def test_a_promotion_can_be_ended_by_another_command(cluster: Cluster) -> None:
    ended: list[Outcome] = []
    cluster.events = [("watch", lambda: ended.append(change(cluster).abort()))]
    outcome = promote(cluster)
    assert outcome.reason == "somebody has ended the promotion"
    assert ended[0].result == "aborted"
    assert ended[0].done
    assert cluster.user_config["bundle"] == "old"
    assert change(cluster).abort().result == "nothing to do"


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
    """Its replicas judge alone meanwhile (test_serve_candidate.py)."""

    def fall_silent() -> None:
        cluster.silent, cluster.requests_a_second = True, 4

    cluster.events = [("canary", fall_silent)]
    outcome = promote(cluster, patience_s=60, stage_timeout_s=60)
    assert outcome.result == "stopped"
    assert cluster.user_config["bundle"] == "old"
    assert cluster.user_config["candidate"] is None


def test_a_leftover_of_which_nobody_knows_is_not_touched(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.put({**cluster.user_config, "candidate": {"bundle": "new", "promotion": "x", "share": 0.0, **LIMITS}})
    monkeypatch.setattr(cluster, "promotion", lambda watching="": {"promotion": None})
    outcome = promote(cluster)
    assert outcome.result == "refused"
    assert "--abort ends it" in outcome.reason


def test_an_endpoint_that_does_not_answer_is_not_changed(cluster: Cluster) -> None:
    cluster.silent, cluster.problem = True, "connection refused"
    with pytest.raises(UserError, match=r"does not answer \(connection refused\)"):
        promote(cluster)
    assert cluster.changes == []


def test_a_model_that_replicas_do_not_take_in_the_end_is_taken_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "model", lambda: "old")
    outcome = promote(cluster)
    assert outcome.result == "rolled back"
    assert "the endpoint answers with old, not with new" in outcome.reason
    assert cluster.user_config == {"bundle": "old", "model": "old", "auth": "off", **previous("")}


def test_a_model_that_ray_cannot_deploy_is_taken_back_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = cluster.application

    def failed(name: str = "") -> Application:
        broken = cluster.user_config["bundle"] == "new"
        return dataclasses.replace(told(), status="DEPLOY_FAILED", message="no space") if broken else told()

    monkeypatch.setattr(cluster, "application", failed)
    outcome = promote(cluster)
    assert outcome.result == "rolled back"
    assert "answers with nothing (no space)" in outcome.reason
    assert cluster.user_config == {"bundle": "old", "model": "old", "auth": "off", **previous("")}


def test_going_back_to_what_does_not_come_is_undone(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.promotion.modelchange.read_bundle", lambda bundle: (cluster.old.info, None))
    monkeypatch.setattr(cluster, "model", lambda: "new")
    cluster.put({**cluster.user_config, "bundle": "new", "model": "new", "previous": "old"})
    with pytest.raises(EndedError, match="answers with new, not with old; new is asked for again"):
        change(cluster).rollback()
    assert cluster.user_config["bundle"] == "new"
    assert cluster.user_config["previous"] == "old"


def test_going_back_is_one_step(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: Any = cluster.labs[0].models
    monkeypatch.setattr("serve.promotion.modelchange.read_bundle", lambda bundle: (models[bundle].info, None))
    assert change(cluster).rollback().result == "refused"
    promote(cluster)
    before = len(cluster.changes)
    outcome = change(cluster).rollback()
    assert outcome.result == "went back"
    assert outcome.done
    assert outcome.model == "old"
    assert len(cluster.changes) == before + 1
    assert cluster.user_config == {"bundle": "old", "model": "old", "auth": "off", **previous("new")}
    assert change(cluster).rollback().model == "new"  # and forth again


def test_going_back_refuses_another_model_at_the_old_path(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(cluster)
    before = len(cluster.changes)
    replaced = dataclasses.replace(cluster.old.info, id="another")
    monkeypatch.setattr("serve.promotion.modelchange.read_bundle", lambda bundle: (replaced, None))
    outcome = change(cluster).rollback()
    assert outcome.result == "refused"
    assert "old holds the model another now, but old was in service from there: put its files back" in outcome.reason
    assert len(cluster.changes) == before


def test_the_model_of_an_endpoint_that_names_none_is_asked_for(cluster: Cluster) -> None:
    del cluster.user_config["model"]  # as `serve deploy` starts it
    assert promote(cluster).result == "promoted"
    assert cluster.user_config["previous_model"] == "old"


def test_going_back_asks_for_no_bundle_that_is_gone(cluster: Cluster) -> None:
    cluster.put({**cluster.user_config, "previous": "/nowhere"})
    with pytest.raises(UserError, match="no bundle there"):
        change(cluster).rollback()
    assert len(cluster.changes) == 1


def test_going_back_during_a_promotion_ends_it(cluster: Cluster) -> None:
    ended: list[Outcome] = []
    cluster.events = [("watch", lambda: ended.append(change(cluster).rollback()))]
    assert promote(cluster).result == "stopped"
    assert ended[0].result == "aborted"
    assert cluster.user_config["bundle"] == "old"


def test_the_outcome_is_json(cluster: Cluster) -> None:
    import json

    told = json.loads(json.dumps(promote(cluster).as_dict()))
    assert told["result"] == "promoted"
    assert told["stages"][1]["counts"]["compared"] >= 20
