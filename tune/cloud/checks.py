"""The pre-flight: a table of checks, each a function from facts to findings.

A check says nothing where what it looks at is not filled in yet, since that is another check's business. One that lacks
a fact is reported as not made, never as good.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tune.cloud import (
    checksaccess,
    checksfile,
    checksmachines,
    checksmoney,
    checksnetwork,
)
from tune.cloud.facts import VERDICTS, CannotTellError, Facts, Finding


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong."""

    name: str
    ask: Callable[[Facts], Iterable[Finding]]


CHECKS: Final = (
    Check("filled", checksfile.unfilled),
    Check("ssh", checksfile.ssh),
    Check("idle nodes", checksfile.terminates),
    Check("profile", checksfile.profiles_named),
    Check("names", checksfile.names),
    Check("versions", checksfile.versions),
    Check("copied files", checksfile.mounts),
    Check("time to live", checksfile.limits),
    Check("credentials", checksaccess.credentials),
    Check("region", checksaccess.region),
    Check("subnets", checksnetwork.subnets),
    Check("security group", checksnetwork.group),
    Check("key pair", checksaccess.key_pair),
    Check("bucket", checksaccess.bucket),
    Check("profile", checksaccess.profiles),
    Check("spot role", checksaccess.spot_role),
    Check("launch", checksaccess.launch),
    Check("types", checksmachines.types),
    Check("gpu", checksmachines.gpus),
    Check("image", checksmachines.images),
    Check("disk", checksmachines.disks),
    Check("memory", checksmachines.memory),
    Check("quota", checksmoney.quotas),
    Check("spot price", checksmoney.spot_prices),
    Check("cost", checksmoney.cost),
)


def run(facts: Facts) -> list[Finding]:
    """What all checks say, in their order. Those that lack a fact for one and the same reason share a line."""
    findings: list[Finding] = []
    not_made: dict[str, list[str]] = {}
    for check in CHECKS:
        try:
            for finding in check.ask(facts):
                findings.append(finding)
        except CannotTellError as error:
            not_made.setdefault(str(error), []).append(check.name)
    for why, names in not_made.items():
        what, _, remedy = why.partition("; ")
        listed = ", ".join(dict.fromkeys(names))
        text = f"could not check: {listed} ({what})"
        findings.append(Finding("not checked", "warning", text, remedy or "mend that, then look again"))
    return findings


def lines(findings: list[Finding]) -> list[str]:
    """For the terminal, what stops first: verdict, check and what was found in one line, what to do in the next."""
    shown: list[str] = []
    for finding in sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict)):
        shown.append(f"{finding.verdict:<9}{finding.check:<16}{finding.what}")
        if finding.remedy:
            shown.append(f"{'':<25}-> {finding.remedy}")
    return shown


def verdict(findings: list[Finding]) -> str:
    """The last line: how many of which, and whether to go on."""
    counts = {each: sum(finding.verdict == each for finding in findings) for each in VERDICTS}
    told = f"{counts['ok']} ok, {counts['warning']} warning(s), {counts['stop']} stop(s)"
    return f"{told}: {'do not start this cluster' if counts['stop'] else 'ray up may come'}"


def good(findings: list[Finding]) -> bool:
    """Whether nothing stops."""
    return all(finding.verdict != "stop" for finding in findings)
