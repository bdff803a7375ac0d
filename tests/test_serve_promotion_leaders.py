"""A promotion is led by one command: what a second one may do meanwhile, and once the first has died."""

from collections.abc import Mapping
from typing import Any

import pytest

from serve.promotion.modelchange import EndedError, Outcome
from tests.promoting import STAGES, change, promote
from tests.promotions import LIMITS, Cluster, KilledError, cluster

__all__ = ["cluster"]


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


def test_a_leftover_of_which_nobody_knows_is_not_touched(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.put({**cluster.user_config, "candidate": {"bundle": "new", "promotion": "x", "share": 0.0, **LIMITS}})
    monkeypatch.setattr(cluster, "promotion", lambda watching="": {"promotion": None})
    outcome = promote(cluster)
    assert outcome.result == "refused"
    assert "--abort ends it" in outcome.reason
