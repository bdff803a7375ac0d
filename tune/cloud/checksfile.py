"""Checks that need no AWS: what is unfilled, open to the world, kept for ever, copied from here, of other versions."""

import re
import shlex
from collections.abc import Iterator
from typing import Any, Final

from tune.cloud.accesspolicies import CLUSTER_TAG
from tune.cloud.clusterfile import TIME_TO_LIVE, UNSET_ADDRESS, UNSET_GROUP, UNSET_NAME, ClusterFile
from tune.cloud.facts import Facts, Finding
from tune.cloud.inboundrules import SSH, addresses, breadth, reaches

# More addresses than a whole university has count as everybody, more than one office's network as many.
_EVERYBODY: Final = 2**16
_MANY: Final = 2**8
# Files that the launcher copies and no checkout holds: what each is, and how it is made.
_MADE_ONCE: Final = {
    "auth_token": (
        "the token by which dashboard, jobs and nodes know each other",
        "uv run ray get-auth-token --generate",
    ),
    "keys.json": ("the keys of those who may call the endpoint", "uv run serve/keys.py add NAME --file {source}"),
}


def command(file: ClusterFile, flags: str) -> str:
    """This program with other flags, to be pasted."""
    return f"uv run tune/preflight.py {shlex.quote(file.path)} {flags}"


def unfilled(facts: Facts) -> Iterator[Finding]:
    """Placeholders of the committed file."""
    file = facts.file
    if not file.unfilled:
        yield Finding("filled", "ok", "no placeholder is left")
        return
    lines: dict[str, list[str]] = {}
    for each in file.unfilled:
        lines.setdefault(each.what, []).append(str(each.line))
    found = "; ".join(f"{what} (line {', '.join(numbers)})" for what, numbers in lines.items())
    if {each.text for each in file.unfilled} == {UNSET_GROUP}:
        yield Finding("filled", "stop", f"not filled in yet: {found}", f"{command(file, '--create')} makes it")
        return
    flags = f"--write --create --region {file.region}"
    if any(UNSET_NAME in each.text for each in file.unfilled):
        flags += " --bucket NAME"
    if any(UNSET_ADDRESS in each.text for each in file.unfilled):
        flags += " --ssh-from YOUR.ADDRESS"
    yield Finding("filled", "stop", f"not filled in yet: {found}", command(file, flags))


def ssh(facts: Facts) -> Iterator[Finding]:
    """Who the file lets in, and to what."""
    file = facts.file
    if file.group_ids and not file.group:
        return  # the rules of those are looked at where AWS lists them
    remedy = command(file, "--write --ssh-from YOUR.ADDRESS")
    rules = list(file.group.get("IpPermissions") or ())
    yield from open_rules(rules, "the file", remedy)
    if not file.ssh_from:
        what = "no rule of the file lets anybody in to port 22: there is none to make a security group of"
        yield Finding("ssh", "stop", what, "take provider.security_group over from the committed cluster.yaml")
    elif file.ssh_from != (UNSET_ADDRESS,) and not _wide(file.ssh_from):
        yield Finding("ssh", "ok", f"port 22 is for {', '.join(file.ssh_from)} only")


def open_rules(rules: list[dict[str, Any]], whose: str, remedy: str) -> Iterator[Finding]:
    """What is too open in inbound rules, those of the file or of a group in AWS."""
    for rule in rules:
        low, high = int(rule.get("FromPort", -1)), int(rule.get("ToPort", -1))
        if addresses(rule) and (low, high) != (SSH, SSH):
            ports = "every port" if low == -1 else f"port {low}" if low == high else f"ports {low} to {high}"
            what = f"{whose} opens {ports} to {', '.join(addresses(rule))}; Ray's ports run anybody's code"
            yield Finding(
                "ssh", "stop", what, "leave port 22 alone open; the rest is reached through SSH (ray attach -p)"
            )
        if reaches(rule, SSH):
            for cidr in addresses(rule):
                if not breadth(cidr):
                    yield Finding("ssh", "stop", f"{whose} opens SSH to {cidr!r}, which is no range", remedy)
                elif breadth(cidr) > _EVERYBODY:
                    yield Finding("ssh", "stop", f"{whose} opens SSH to the world ({cidr})", remedy)
                elif breadth(cidr) > _MANY:
                    yield Finding(
                        "ssh", "warning", f"{whose} opens SSH to {breadth(cidr):,} addresses ({cidr})", remedy
                    )


def _wide(ranges: tuple[str, ...]) -> bool:
    return any(breadth(cidr) > _MANY or not breadth(cidr) for cidr in ranges)


def terminates(facts: Facts) -> Iterator[Finding]:
    """Whether idle nodes go, or stop and keep their disks."""
    if facts.file.provider.get("cache_stopped_nodes", True):
        what = "idle nodes on demand are stopped, not terminated: their disks are billed until somebody looks"
        yield Finding("idle nodes", "stop", what, "write cache_stopped_nodes: false below provider")
    else:
        yield Finding("idle nodes", "ok", "are terminated")


def profiles_named(facts: Facts) -> Iterator[Finding]:
    """Ray gives the head a profile with all of S3, and workers none."""
    without = [kind.name for kind in facts.file.types if not kind.profile]
    if without:
        what = f"no IamInstanceProfile in {', '.join(without)}: a worker without one cannot write to the bucket"
        yield Finding("profile", "stop", what, f"write IamInstanceProfile: {{Name: {UNSET_NAME}}} there, then --write")


def names(facts: Facts) -> Iterator[Finding]:
    """What says the same thing twice in the file: labels, from which a search's money is computed, and tags."""
    file = facts.file
    wrong = []
    for kind in file.types:
        meant = {"instance-type": kind.instance_type, "region": file.region, "market": kind.market}
        said = {key: kind.labels.get(f"eagleray.{key}", value) for key, value in meant.items()}
        wrong += [f"{kind.name}: {key} {said[key]}, not {meant[key]}" for key in meant if said[key] != meant[key]]
    if wrong:
        what = f"labels from which money is computed are wrong ({'; '.join(wrong)})"
        yield Finding("names", "warning", what, "write labels as the node_config beside them says")
    tags = {
        tag["Value"]
        for kind in file.types
        for specification in kind.config.get("TagSpecifications") or ()
        for tag in specification.get("Tags") or ()
        if tag.get("Key") == CLUSTER_TAG
    }
    if tags - {file.name}:
        what = (
            f"disks are tagged as cluster {', '.join(sorted(tags))}, and this one is {file.name}: none would find them"
        )
        yield Finding("names", "warning", what, f"write Value: {file.name} in TagSpecifications")
    running = [kind.name for kind in file.workers if kind.min_workers]
    if running:
        what = f"min_workers keeps {', '.join(running)} running with nothing to do"
        yield Finding("idle nodes", "warning", what, "write min_workers: 0, if that is not meant")


def limits(facts: Facts) -> Iterator[Finding]:
    """The time-to-live on the head."""
    file = facts.file
    hours, usd = (file.option(TIME_TO_LIVE, option) for option in ("ttl", "max-usd"))
    given = [f"after {hours}"] if hours.strip("0smhd.") else []
    given += [f"at {usd} USD"] if usd.strip("0.") else []
    cluster = file.option(TIME_TO_LIVE, "cluster")
    if cluster and cluster != file.name:
        what = f"the time-to-live watches cluster {cluster}, and this one is {file.name}: it would end nothing"
        yield Finding("time to live", "stop", what, f"write --cluster {file.name} behind {TIME_TO_LIVE}")
    elif given:
        yield Finding("time to live", "ok", f"the cluster ends by itself {' or '.join(given)}")
    else:
        what = "nothing ends the cluster but `ray down`, with the laptop off neither"
        yield Finding("time to live", "warning", what, command(file, "--write --ttl 8h --max-usd 20"))


def versions(facts: Facts) -> Iterator[Finding]:
    """Ray and Python: here, as the project pins them, and as the file's set-up installs them."""
    here, text = facts.here, "\n".join(facts.file.texts)
    remedy = f"pin ray=={here.ray} in both (`uv sync` in setup_commands takes the project's pins)"
    pins = set(re.findall(r"\bray(?:\[[\w,-]*\])?==([\w.]+)", text)) | ({here.ray_pinned} - {""})
    wrong = sorted(pins - {here.ray})
    if wrong:
        what = f"this machine runs Ray {here.ray}, the cluster would run {', '.join(wrong)}: they refuse each other"
        yield Finding("versions", "stop", what, remedy)
    elif not re.search(r"\buv\b[^\n;&|]* sync\b", text) and not pins:
        yield Finding("versions", "stop", "the set-up pins no version of Ray", remedy)
    mine = ".".join(here.python.split(".")[:2])
    theirs = set(re.findall(r"(?:--python[ =]|UV_PYTHON=)(\d+\.\d+)", text))
    if theirs - {mine}:
        what = f"this machine runs Python {mine}, the cluster {', '.join(sorted(theirs))}: --resume may not read back"
        yield Finding("versions", "warning", what, f"{command(facts.file, '--write')} writes {mine} into the file")
    elif not theirs:
        yield Finding("versions", "warning", "the file does not say which Python", f"write uv sync --python {mine}")
    elif not wrong:
        yield Finding("versions", "ok", f"Ray {here.ray} and Python {mine}, here and there")


def mounts(facts: Facts) -> Iterator[Finding]:
    """What the launcher copies to the nodes has to be there; what is made once is easily forgotten."""
    file, missing = facts.file, facts.here.missing
    for source in missing:
        what, remedy = _MADE_ONCE.get(source.rpartition("/")[2], ("", ""))
        if what:
            yield Finding("copied files", "stop", f"no {source}, {what}", remedy.format(source=source))
    if rest := [source for source in missing if source.rpartition("/")[2] not in _MADE_ONCE]:
        what = f"file_mounts names what is not there: {', '.join(rest)}"
        yield Finding("copied files", "stop", what, "work in the folder of the project; the paths count from there")
    if file.mounted and not missing:
        yield Finding("copied files", "ok", f"all {len(file.mounted)} are there")
