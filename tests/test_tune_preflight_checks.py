"""The checks together: what could not be asked is never good, and how the findings are told."""

import pytest

from tests.cloud import HERE
from tests.preflightfacts import facts, file
from tune.cloud.checks import CHECKS, lines, run, verdict
from tune.cloud.facts import CannotTellError, Fact, Facts, Finding

__all__ = ["facts", "file"]


def test_a_fact_that_could_not_be_had_is_never_good(facts: Facts) -> None:
    with pytest.raises(CannotTellError, match="no permission"):
        _ = Fact[int](why_not="no permission").value
    nothing = Facts(facts.file, HERE)
    findings = run(nothing)
    assert {finding.check for finding in findings if finding.verdict == "ok"} <= {
        *("filled", "ssh", "idle nodes", "versions", "copied files", "time to live", "key pair")
    }
    assert "not checked" in {finding.check for finding in findings}


def test_the_table(facts: Facts) -> None:
    findings = [
        Finding("a", "ok", "fine"),
        Finding("b", "warning", "odd", "mend it"),
        Finding("c", "stop", "bad", "mend it first"),
    ]
    assert lines(findings) == [
        "stop     c               bad",
        "                         -> mend it first",
        "warning  b               odd",
        "                         -> mend it",
        "ok       a               fine",
    ]
    assert verdict(findings) == "1 ok, 1 warning(s), 1 stop(s): do not start this cluster"
    assert len({check.ask for check in CHECKS}) == len(CHECKS)
    with pytest.raises(AssertionError):
        Finding("a", "stop", "no remedy")
