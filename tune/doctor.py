"""The search doctor: a table of rules about what can be wrong with a search, asked before, during and after it.

A rule is a function from facts to a finding or None, in `doctorspace` (before), `doctortrials` or `doctorbest` (during
and after), and a line in `RULES`. It says only what the rows at hand support, and None while they are too few.
"""

import sys
from dataclasses import replace

import pandas as pd
import tqdm

from tune import doctorbest, doctorspace, doctortrials
from tune.doctorbest import at_bounds
from tune.doctorfacts import Facts, Finding, Rule, facts_of
from tune.space import Space

__all__ = [
    "RULES",
    "DoctorsVisit",
    "Facts",
    "Finding",
    "Rule",
    "after",
    "at_bounds",
    "before",
    "facts_of",
    "lines",
    "of_trials",
]

RULES: tuple[Rule, ...] = (
    Rule("scale", "before", doctorspace.scale),
    Rule("dead-region", "before", doctorspace.dead_region),
    Rule("few-trials", "before", doctorspace.few_trials),
    Rule("patience", "before", doctorspace.patience),
    Rule("small-validation", "before", doctorspace.small_validation),
    Rule("rare-class", "before", doctorspace.rare_class),
    Rule("one-class", "before", doctorspace.one_class),
    Rule("blank-images", "before", doctorspace.blank_images),
    Rule("unused-images", "before", doctorspace.unused_images),
    Rule("collapsed", "after", doctortrials.collapsed),
    Rule("learning-rate", "after", doctortrials.learning_rate),
    Rule("nothing-learned", "after", doctortrials.nothing_learned),
    Rule("dead-relus", "after", doctortrials.dead_relus),
    Rule("diverged", "after", doctortrials.diverged),
    Rule("same-error", "after", doctortrials.same_error),
    Rule("gap", "after", doctorbest.gap),
    Rule("at-bound", "after", doctorbest.at_bound),
    Rule("indistinguishable", "after", doctorbest.indistinguishable),
    Rule("defaults", "after", doctorbest.not_better_than_default),
    Rule("still-learning", "after", doctorbest.still_learning),
)


def before(facts: Facts) -> list[Finding]:
    """What is wrong with the space, the plan or the images; empty if nothing is."""
    return _ask("before", facts)


def after(facts: Facts) -> list[Finding]:
    """What the trials so far say; for a running search too. Empty if nothing is wrong or too little is known."""
    return _ask("after", facts)


def of_trials(findings: list[Finding]) -> list[Finding]:
    """Those that the trials gave, leaving out what was known before them."""
    late = {rule.name for rule in RULES if rule.when == "after"}
    return [finding for finding in findings if finding.rule in late]


def lines(findings: list[Finding]) -> list[str]:
    """The findings for the terminal, warnings first: what and its evidence in one line, what to do in the next."""
    ordered = sorted(findings, key=lambda finding: finding.severity != "warning")
    return [
        line
        for finding in ordered
        for line in (
            f"{finding.severity:<12}{finding.what}: {finding.evidence}",
            f"{'':<12}-> {finding.advice}",
        )
    ]


class DoctorsVisit:
    """The doctor at one search: says what is wrong before it, and during it each thing once."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._before = before(facts)
        self._said: set[str] = set()
        self._say(self._before)

    def look(self, table: pd.DataFrame) -> None:
        """Print what the trials so far say that had not been said."""
        self._say(after(replace(self._facts, table=table)))

    def last_word(self, table: pd.DataFrame, space: Space) -> list[Finding]:
        """All that is wrong, now that the search has ended with this `space`."""
        return [*self._before, *after(replace(self._facts, table=table, space=space))]

    def _say(self, findings: list[Finding]) -> None:
        new = [finding for finding in findings if finding.rule not in self._said]
        self._said |= {finding.rule for finding in new}
        if new:
            tqdm.tqdm.write("\n".join(lines(new)), file=sys.stdout)


def _ask(when: str, facts: Facts) -> list[Finding]:
    asked = (rule.check(facts) for rule in RULES if rule.when == when)
    return [finding for finding in asked if finding is not None]
