"""The judge: early where the evidence is clear, patient where it is not, and never good without enough of it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest

from serve.promotion.board import Board, Report, Status
from serve.promotion.judge import Counts, Histogram, Limits, judge, stage_of, total, waits_for
from serve.promotion.promotionroutes import PromotionAnswer
from tests.clocks import Clock

LIMITS = Limits(max_error_rate=0.01, max_latency_ratio=2.0, min_agreement=0.8, min_requests=100)


def histogram(values: Iterable[float]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


def counts(compared: int = 0, *, agree: float = 1.0, ratio: float = 1.0, **others: Any) -> Counts:
    """Of a candidate that labelled so many images, the share `agree` of them like the model in service."""
    others.setdefault("runs", compared + others.get("errors", 0))
    return Counts(
        compared=compared,
        agreed=round(compared * agree),
        ratios=histogram([ratio] * compared),
        old_seconds=histogram([0.01] * compared),
        new_seconds=histogram([0.01 * ratio] * compared),
        **others,
    )


def test_a_good_model_passes_once_enough_was_seen() -> None:
    assert judge(counts(99), LIMITS, 0).decision == "wait"
    assert judge(counts(99), LIMITS, 0).reasons == ("99 of 100 images compared",)
    verdict = judge(counts(100, agree=0.9), LIMITS, 0)
    assert verdict.decision == "good"
    assert verdict.reasons[:2] == ("90 of 100 labels agree", "0 errors in 100 runs")


def test_a_stage_that_answers_must_have_answered() -> None:
    """Shadow traffic alone says nothing about answers: they go another way."""
    assert judge(counts(500), LIMITS, 0.1).decision == "wait"
    assert judge(counts(500, new_requests=99), LIMITS, 0.1).reasons == ("99 of 100 requests answered by the new model",)
    assert judge(counts(500, new_requests=100), LIMITS, 0.1).decision == "good"


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (counts(0, errors=3, runs=3), "it failed in 3 of 3 runs"),
        (counts(0, errors=3, not_a_number=3, runs=3), "without a number"),
        (counts(40, errors=8), "it failed in 8 of 48 runs"),
        (counts(10, agree=0.0), "it gave 0 of 10 images the label"),
        (counts(60, agree=0.5), "it gave 30 of 60 images the label"),
        (counts(12, ratio=10.0), "times as long"),
    ],
)
def test_clear_evidence_is_not_waited_for(seen: Counts, why: str) -> None:
    verdict = judge(seen, LIMITS, 0)
    assert verdict.decision == "rollback"
    assert why in verdict.reasons[0]


@pytest.mark.parametrize(
    "seen",
    [
        Counts(),
        counts(0, errors=2, runs=2),
        counts(2, agree=0.0),
        counts(10, agree=0.7),
        counts(60, agree=0.75),
        counts(5, ratio=10.0),
        counts(60, ratio=1.9),
    ],
)
def test_a_few_images_prove_nothing(seen: Counts) -> None:
    assert judge(seen, LIMITS, 0).decision == "wait"


def test_once_there_is_enough_what_was_seen_decides() -> None:
    assert judge(counts(100, agree=0.79), LIMITS, 0).decision == "rollback"
    assert judge(counts(100, agree=0.80), LIMITS, 0).decision == "good"
    assert judge(counts(400, errors=8), LIMITS, 0).decision == "rollback"
    assert judge(counts(400, errors=4), LIMITS, 0).decision == "good"
    assert judge(counts(100, ratio=2.5), LIMITS, 0).decision == "rollback"
    assert judge(counts(100, errors=2), LIMITS, 0).decision == "good"  # two may be chance


def test_all_reasons_are_told() -> None:
    verdict = judge(counts(100, agree=0.1, ratio=10.0, errors=50), LIMITS, 0)
    assert len(verdict.reasons) == 3
    flags = ("--max-error-rate", "--min-agreement", "--max-latency-ratio")
    assert all(reason.endswith(f", {flag})") for reason, flag in zip(verdict.reasons, flags, strict=True))


def test_what_a_stage_waits_for_is_said() -> None:
    assert waits_for(LIMITS, 0) == "100 images of requests are compared"
    assert waits_for(LIMITS, 0.1).endswith("100 requests answered by the new model, which gets 10% of all")
    assert waits_for(LIMITS, 1).endswith("100 requests answered by the new model")


def test_the_median_is_not_moved_by_a_few_slow_images() -> None:
    seen = counts(100)
    seen.ratios = histogram([1.1] * 60 + [50.0] * 40)
    assert judge(seen, LIMITS, 0).decision == "good"
    median = seen.ratios.median()
    assert median is not None
    assert median == pytest.approx(1.1, rel=0.1)


def test_a_histogram_adds_up_and_takes_no_nonsense() -> None:
    one = histogram([0.001, 0.001, 5.0])
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        one.add(nonsense)
    assert one.total() == 3
    assert one.above(1.0) == 1
    assert one.median() == pytest.approx(0.001, rel=0.1)
    assert Histogram().median() is None


def test_counts_add_up_over_replicas_and_stay_as_they_are() -> None:
    one, other = counts(10, old_requests=3), counts(20, ratio=4.0, old_requests=4, new_requests=1)
    whole = total([one, other])
    assert (whole.compared, whole.old_requests, whole.new_requests) == (30, 7, 1)
    assert whole.ratios.total() == 30
    assert one.ratios.total() == 10
    assert total([]) == Counts()


def test_stages_are_named_by_their_share() -> None:
    assert [stage_of(share) for share in (0, 0.1, 1)] == ["shadow", "canary", "watch"]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"max_error_rate": -0.1}, "max_error_rate must be >= 0"),
        ({"max_error_rate": 1.1}, "max_error_rate must be <= 1"),
        ({"max_latency_ratio": 0.0}, "max_latency_ratio must be > 0"),
        ({"min_agreement": 2.0}, "min_agreement must be <= 1"),
        ({"min_requests": 0}, "min_requests must be >= 1"),
    ],
)
def test_limits_check_themselves(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Limits(**values)


def report(replica: str = "a", seen: Counts | None = None, *, status: Status = "ready", **others: Any) -> Report:
    plain = Report(replica, "p1", 0.0, LIMITS, status, "old", "new" if status == "ready" else "")
    return dataclasses.replace(plain, counts=seen or Counts(), **others)


def test_the_board_sums_over_replicas_and_counts_nothing_twice() -> None:
    board = Board()
    for _ in range(3):
        assert board.report(report("a", counts(60))).decision == "wait"
    assert board.report(report("b", counts(40))).decision == "good"
    state = board.state("p1", 0.0)
    assert state["counts"]["compared"] == 100
    assert set(state["replicas"]) == {"a", "b"}
    assert PromotionAnswer.model_validate(state).decision == "good"


def test_a_replica_that_died_has_seen_what_it_has_seen() -> None:
    clock = Clock()
    board = Board(clock)
    board.report(report("a", counts(60)))
    clock.now += 3600
    assert board.report(report("b", counts(40))).decision == "good"


def test_a_rollback_holds_for_all_stages_and_replicas() -> None:
    board = Board()
    board.report(report("a", counts(20, agree=0.0)))
    assert board.report(report("b", counts(1000), share=0.5)).decision == "rollback"
    assert board.state("p1", 1.0)["decision"] == "rollback"
    assert board.report(report("b", promotion="p2")).decision == "wait"  # another promotion begins anew


def test_stages_are_judged_by_what_was_seen_in_them() -> None:
    board = Board()
    assert board.report(report("a", counts(100))).decision == "good"
    assert board.report(report("a", counts(5), share=0.5)).decision == "wait"


def test_a_new_board_learns_of_a_verdict_from_those_who_obeyed_it() -> None:
    board = Board()
    verdict = board.report(report("a", status="dropped", problem="it gave 0 of 10 images the label"))
    assert verdict.decision == "rollback"
    assert verdict.reasons == ("it gave 0 of 10 images the label",)


def test_a_replica_that_could_not_load_it_ends_the_promotion() -> None:
    board = Board()
    board.report(report("a"))
    verdict = board.report(report("b", status="failed", problem="no such folder"))
    assert verdict.reasons == ("a replica could not load it: no such folder",)


def test_replicas_that_die_while_they_load_it_end_the_promotion() -> None:
    clock = Clock()
    board = Board(clock)
    board.report(report("a", status="loading"))
    clock.now += 60
    assert board.report(report("b", status="loading")).decision == "wait"  # one may be chance
    clock.now += 60
    verdict = board.report(report("c", status="loading"))
    assert verdict.reasons == ("2 replicas died while they loaded it",)


def test_the_board_remembers_who_leads() -> None:
    clock = Clock()
    board = Board(clock)
    assert board.state("p1", 0.0)["watched_s"] is None
    board.state("p1", 0.0, watching=True)
    clock.now += 12
    assert board.state("p1", 0.0)["watched_s"] == 12


def test_the_board_forgets_old_promotions() -> None:
    board = Board()
    for number in range(50):
        board.report(report(promotion=f"p{number}"))
    assert board.state("p0", 0.0)["replicas"] == {}
    assert board.state("p49", 0.0)["replicas"] != {}
