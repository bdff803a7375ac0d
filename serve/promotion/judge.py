"""Is the new model as good as the old one? A pure function of what was counted while both had the same work.

It imports nothing heavy: the board (`board.py`), a process of its own without a network in it, asks it too.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from data.checks import above_zero, at_least
from models.metrics import wilson

Decision = Literal["wait", "good", "rollback"]
Stage = Literal["shadow", "canary", "watch"]

# Standard deviations of the bound (one-sided 0.13 %). It is asked every second, so it must hold for many looks.
_Z: Final = 3.0
# One request that fails may be anything. The second and the third come soon where a model is broken.
_FEWEST_ERRORS: Final = 3
_BINS_PER_DOUBLING: Final = 8


@dataclass(frozen=True)
class Limits:
    """What a new model must keep to."""

    max_error_rate: float = 0.01
    """Most of its runs that may fail where the model in service answers (an exception, or no number as an answer)."""
    max_latency_ratio: float = 2.0
    """Most that it may take for an image, as a multiple of what the model in service takes for the same images."""
    min_agreement: float = 0.8
    """Least share of images that it must give the same label as the model in service. A better model corrects errors,
    so it will not agree with all of them: lower this where the new model is meant to differ."""
    min_requests: int = 100
    """Images to compare, and requests to answer in a stage that answers, before a stage counts as passed."""

    def __post_init__(self) -> None:
        at_least(self, max_error_rate=0, min_agreement=0, min_requests=1)
        above_zero(self, "max_latency_ratio")
        for name in ("max_error_rate", "min_agreement"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be <= 1, got {getattr(self, name)}")


def stage_of(share: float) -> Stage:
    """The stage that a candidate's share of the requests means."""
    return "shadow" if share <= 0 else "watch" if share >= 1 else "canary"


@dataclass
class Histogram:
    """How often each size was seen, in steps of a factor 2^(1/8) (9 %): medians of it add up over replicas."""

    bins: Counter[int] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        """`value`: above zero; anything else has no place and is not counted."""
        if value > 0 and math.isfinite(value):
            self.bins[math.floor(math.log2(value) * _BINS_PER_DOUBLING)] += 1

    def total(self) -> int:
        return self.bins.total()

    def above(self, limit: float) -> int:
        """Values whose bin lies wholly above `limit`."""
        edge = math.log2(limit) * _BINS_PER_DOUBLING
        return sum(count for number, count in self.bins.items() if number >= edge)

    def median(self) -> float | None:
        """The middle of the bin that holds the median; None if nothing was seen."""
        half = self.total() / 2
        seen = 0
        for number in sorted(self.bins):
            seen += self.bins[number]
            if seen >= half:
                return float(2 ** ((number + 0.5) / _BINS_PER_DOUBLING))
        return None


@dataclass
class Counts:
    """What one replica, or all of them, saw of both models in one stage of a promotion."""

    old_requests: int = 0
    """Requests that the model in service answered."""
    new_requests: int = 0
    """Requests that the candidate answered."""
    runs: int = 0
    """How often the candidate was given images, to answer a request or to be compared."""
    errors: int = 0
    """Runs in which it failed. No user saw one: the model in service answered instead."""
    not_a_number: int = 0
    """Of the errors, those where it answered without a number."""
    compared: int = 0
    """Images that both models labelled."""
    agreed: int = 0
    """Of these, images with the same label."""
    old_seconds: Histogram = field(default_factory=Histogram)
    """Seconds an image, decoding included, of the model in service."""
    new_seconds: Histogram = field(default_factory=Histogram)
    ratios: Histogram = field(default_factory=Histogram)
    """The candidate's seconds over the other's, each time for the same images, one after the other."""


def total(parts: Sequence[Counts]) -> Counts:
    """The sum over replicas."""
    whole = Counts()
    for part in parts:
        for one in fields(Counts):
            ours, theirs = getattr(whole, one.name), getattr(part, one.name)
            if isinstance(ours, Histogram):
                ours.bins.update(theirs.bins)
            else:
                setattr(whole, one.name, ours + theirs)
    return whole


@dataclass(frozen=True)
class Verdict:
    """What is to be done, and why, in words for a person."""

    decision: Decision
    reasons: tuple[str, ...] = ()


def judge(counts: Counts, limits: Limits, share: float) -> Verdict:
    """`rollback` as soon as the evidence against the candidate is clear, `good` once there is enough for it.

    Before there is enough, a limit counts as broken only if the one-sided Wilson bound of the proportion says so: a few
    images prove nothing, hundreds of failures must not be waited for. Once there is enough, what was seen decides.
    """
    missing = _missing(counts, limits, share)
    broken = _broken(counts, limits, clear=bool(missing))
    if broken:
        return Verdict("rollback", tuple(broken))
    return Verdict("wait", tuple(missing)) if missing else Verdict("good", tuple(_seen(counts)))


def waits_for(limits: Limits, share: float) -> str:
    """What a stage must have seen before it is passed, in words for who waits for it."""
    compared = f"{limits.min_requests:,} images of requests are compared"
    if share <= 0:
        return compared
    part = "" if share >= 1 else f", which gets {share:.0%} of all"
    return f"{compared} and {limits.min_requests:,} requests answered by the new model{part}"


def _missing(counts: Counts, limits: Limits, share: float) -> list[str]:
    wanted = limits.min_requests
    missing = []
    if counts.compared < wanted:
        missing.append(f"{counts.compared:,} of {wanted:,} images compared")
    tried = counts.new_requests + counts.errors
    if share > 0 and tried < wanted:
        missing.append(f"{tried:,} of {wanted:,} requests answered by the new model")
    return missing


def _broken(counts: Counts, limits: Limits, *, clear: bool) -> list[str]:
    found = []
    runs, errors = counts.runs, counts.errors
    bad = wilson(errors, runs, _Z)[0] > limits.max_error_rate if clear else errors > limits.max_error_rate * runs
    if bad and errors >= _FEWEST_ERRORS:
        nan = f", {counts.not_a_number:,} of them without a number as an answer" if counts.not_a_number else ""
        found.append(
            f"it failed in {errors:,} of {runs:,} runs{nan} (limit {limits.max_error_rate:.1%}, --max-error-rate)"
        )
    compared, agreed = counts.compared, counts.agreed
    if (wilson(agreed, compared, _Z)[1] if clear else agreed / max(compared, 1)) < limits.min_agreement:
        found.append(
            f"it gave {agreed:,} of {compared:,} images the label of the model in service "
            f"({agreed / max(compared, 1):.0%}, limit {limits.min_agreement:.0%}, --min-agreement)"
        )
    # The median is above the limit where more than half of the pairs are.
    slow, pairs = counts.ratios.above(limits.max_latency_ratio), counts.ratios.total()
    if (wilson(slow, pairs, _Z)[0] if clear else slow / max(pairs, 1)) > 0.5:
        limit = f"(limit {limits.max_latency_ratio:g}, --max-latency-ratio)"
        found.append(f"it took {counts.ratios.median():.1f} times as long {limit}")
    return found


def _seen(counts: Counts) -> list[str]:
    """What a stage that was passed is told by."""
    seen = [
        f"{counts.agreed:,} of {counts.compared:,} labels agree",
        f"{counts.errors:,} errors in {counts.runs:,} runs",
    ]
    ratio = counts.ratios.median()
    return [*seen, f"{ratio:.1f} times the time"] if ratio else seen
