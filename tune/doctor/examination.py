"""The search doctor: a table of rules about what can be wrong with a search, asked before, during and after it.

A rule is a function from facts to a finding or None, in `beforehand` (before), `manytrials` or `besttrial` (during
and after), and a line in `RULES`. It says only what the rows at hand support, and None while they are too few.
"""

import sys
from dataclasses import replace

import pandas as pd
import tqdm

from tune.doctor import beforehand, besttrial, manytrials
from tune.doctor.facts import Facts, Finding, Rule
from tune.space import Space

RULES: tuple[Rule, ...] = (
    Rule("scale", "before", beforehand.scale),
    Rule("dead-region", "before", beforehand.dead_region),
    Rule("few-trials", "before", beforehand.few_trials),
    Rule("patience", "before", beforehand.patience),
    Rule("small-validation", "before", beforehand.small_validation),
    Rule("rare-class", "before", beforehand.rare_class),
    Rule("one-class", "before", beforehand.one_class),
    Rule("blank-images", "before", beforehand.blank_images),
    Rule("unused-images", "before", beforehand.unused_images),
    Rule("collapsed", "after", manytrials.collapsed),
    Rule("learning-rate", "after", manytrials.learning_rate),
    Rule("nothing-learned", "after", manytrials.nothing_learned),
    Rule("dead-relus", "after", manytrials.dead_relus),
    Rule("diverged", "after", manytrials.diverged),
    Rule("same-error", "after", manytrials.same_error),
    Rule("gap", "after", besttrial.gap),
    Rule("at-bound", "after", besttrial.at_bound),
    Rule("indistinguishable", "after", besttrial.indistinguishable),
    Rule("defaults", "after", besttrial.not_better_than_default),
    Rule("still-learning", "after", besttrial.still_learning),
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
