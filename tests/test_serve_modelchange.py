"""The change of models at the end of a promotion and the way back: what does not come is undone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from serve.promotion.modelchange import EndedError, Outcome
from serve.promotion.serveapi import Application
from tests.promoting import change, previous, promote
from tests.promotions import Cluster, cluster

__all__ = ["cluster"]


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
    said: list[str] = []
    outcome = change(cluster).rollback(said.append)
    assert said == ["going back from new to old: this is the model that the last promotion or --rollback took out"]
    assert outcome.result == "went back"
    assert outcome.reason.endswith("in the place of new; a further --rollback undoes this: it returns to new")
    assert outcome.bundle == "old"
    assert outcome.done
    assert outcome.model == "old"
    assert len(cluster.changes) == before + 1
    assert cluster.user_config == {"bundle": "old", "model": "old", "auth": "off", **previous("new")}
    assert change(cluster).rollback(said.append).model == "new"  # and forth again, which is said before it is done
    assert said[1].startswith("going back from old to new: this is the model that")


def test_going_back_refuses_another_model_at_the_old_path(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(cluster)
    before = len(cluster.changes)
    replaced = dataclasses.replace(cluster.old.info, id="another")
    monkeypatch.setattr("serve.promotion.modelchange.read_bundle", lambda bundle: (replaced, None))
    outcome = change(cluster).rollback()
    assert outcome.result == "refused"
    assert "old holds the model another now, but old was in service from there: put its files back" in outcome.reason
    assert len(cluster.changes) == before
    assert outcome.bundle == ""


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
    cluster.put({**cluster.user_config, "previous": "oldest"})
    cluster.events = [("watch", lambda: ended.append(change(cluster).rollback()))]
    assert promote(cluster).result == "stopped"
    assert ended[0].result == "aborted"
    assert ended[0].reason.endswith("; a further --rollback goes back from it to oldest")
    assert cluster.user_config["bundle"] == "old"
