"""Fills cluster.yaml in place: only the values change; comments, order and layout stay as they are.

The places are found by YAML's own parser, which tells for each value where in the text it begins and ends.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import yaml

from data.errors import UserError
from tune.cloud.clusterfile import BUCKET, TIME_TO_LIVE, UNSET_NAME, ClusterFile, parse, root
from tune.cloud.inboundrules import SSH, reaches

METRICS: Final = "EAGLERAY_METRICS"

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Filling:
    """What to write; what is empty stays as it is."""

    region: str = ""
    image: str = ""
    ssh_from: str = ""
    """One range of addresses, as 203.0.113.7/32."""
    subnets: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    """Those of the subnets; written where the file names zones."""
    group: str = ""
    """The id of the security group."""
    bucket: str = ""
    """Its name, without s3://."""
    profiles: Mapping[str, str] = field(default_factory=dict)
    """The instance profile of each node type."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What the time-to-live's command is given: option -> value."""
    metrics: bool = False
    python: str = ""
    """The version that `uv sync --python` is given, as 3.11."""


@dataclass(frozen=True)
class _Edit:
    begin: int
    end: int
    new: str


def filled(file: ClusterFile, filling: Filling) -> ClusterFile:
    """The file with the values in it. `UserError` where a value has no place to go."""
    # Names first: they may stand in a text that the others put something into.
    for steps in ((_names,), (_places, _lists, _options)):
        edits = [edit for step in steps for edit in step(file, filling)]
        text = file.text
        for edit in sorted(edits, key=lambda edit: edit.begin, reverse=True):
            text = text[: edit.begin] + edit.new + text[edit.end :]
        file = parse(file.path, text) if edits else file
    return file


def changes(before: str, after: str) -> list[str]:
    """The lines that differ, as a diff shows them: those that went with -, those that came with +."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++"))]


def _names(file: ClusterFile, filling: Filling) -> Iterator[_Edit]:
    """Region and bucket: wherever a value of the file names the old one."""
    swaps: list[tuple[re.Pattern[str], str]] = []
    if filling.region and filling.region != file.region:
        swaps.append((re.compile(rf"(?<![\w-]){re.escape(file.region)}(?![\w-])"), filling.region))
    if filling.bucket and filling.bucket != file.bucket:
        if not file.bucket:
            raise UserError(f"{file.path}: no s3:// address in it that --bucket could fill; look at the committed file")
        swaps.append((re.compile(rf"s3://{re.escape(file.bucket)}(?![\w.-])"), f"s3://{filling.bucket}"))
    yield from _rewritten(file, lambda raw: _swapped(raw, swaps))


def _swapped(raw: str, swaps: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in swaps:
        raw = pattern.sub(new, raw)
    return raw


def _rewritten(file: ClusterFile, rewrite: Callable[[str], str]) -> Iterator[_Edit]:
    for _, node in file.scalars:
        begin, end = node.start_mark.index, node.end_mark.index
        if (new := rewrite(file.text[begin:end])) != file.text[begin:end]:
            yield _Edit(begin, end, new)


def _places(file: ClusterFile, filling: Filling) -> Iterator[_Edit]:
    """Values that stand in a place of their own: image, profile, address, zones."""
    for keys, node in file.scalars:
        new = ""
        if keys[-1] == "ImageId":
            new = filling.image
        elif keys[-2:] == ("IamInstanceProfile", "Name") and ours(node.value, file):
            new = filling.profiles.get(str(keys[1]), "")
        elif keys == ("provider", "availability_zone"):
            new = ",".join(filling.zones)
        elif keys[:3] == ("provider", "security_group", "IpPermissions") and keys[-1] == "CidrIp":
            rule = file.group["IpPermissions"][int(keys[3])]
            new = _address(file, rule, keys, filling.ssh_from)
        if new:
            yield _Edit(node.start_mark.index, node.end_mark.index, _quoted(new, node))


def ours(profile: str, file: ClusterFile) -> bool:
    """Whether --write may name another profile in this one's place: it is unset, or was named by --write."""
    return profile == UNSET_NAME or (profile.startswith(f"{file.name}-") and profile.endswith(("-head", "-worker")))


def _address(file: ClusterFile, rule: dict[str, object], keys: Keys, ssh_from: str) -> str:
    ranges = rule.get("IpRanges")
    if not ssh_from or not reaches(rule, SSH):
        return ""
    if isinstance(ranges, list) and len(ranges) > 1:
        raise UserError(f"{file.path}: SSH is open to {len(ranges)} ranges there; leave one, then --ssh-from sets it")
    return ssh_from


def _quoted(value: str, node: yaml.ScalarNode) -> str:
    return f"{node.style}{value}{node.style}" if node.style in ("'", '"') else value


def _lists(file: ClusterFile, filling: Filling) -> Iterator[_Edit]:
    """Subnets and security group of each node type, in the form (one line or several) that the list has."""
    for key, names in (("SubnetIds", filling.subnets), ("SecurityGroupIds", (filling.group,) if filling.group else ())):
        found = list(_under(root(file.text), key)) if names else []
        if names and not found:
            what = f"no {key} to fill; write {key}: [] into the node_config of each node type"
            raise UserError(f"{file.path}: {what}")
        for node in found:
            if node.flow_style or not node.value:
                yield _Edit(node.start_mark.index, node.end_mark.index, f"[{', '.join(names)}]")
            else:
                end_of_line = "\r\n" if "\r\n" in file.text else "\n"
                rows = f"{end_of_line}{' ' * node.start_mark.column}- ".join(names)
                yield _Edit(node.value[0].start_mark.index, node.value[-1].end_mark.index, rows)


def _under(tree: yaml.Node, key: str) -> Iterator[yaml.SequenceNode]:
    """The lists under a key, each once, wherever they stand."""
    found: dict[int, yaml.SequenceNode] = {}
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == key and isinstance(value, yaml.SequenceNode):
                    found[value.start_mark.index] = value
                waiting.append(value)
    yield from found.values()


def _options(file: ClusterFile, filling: Filling) -> Iterator[_Edit]:
    """Arguments of the command that runs the time-to-live, and the switch of the metrics."""
    if filling.options and not any(TIME_TO_LIVE in text for text in file.texts):
        raise UserError(f"{file.path}: no command runs {TIME_TO_LIVE}; look at the committed file")
    if filling.metrics and not any(f"{METRICS}=" in text for text in file.texts):
        raise UserError(f"{file.path}: no {METRICS}=0 to switch on; look at the committed file")

    def rewrite(raw: str) -> str:
        if filling.metrics:
            raw = re.sub(rf"\b{METRICS}=0\b", f"{METRICS}=1", raw)
        if filling.python:
            raw = re.sub(r"(\buv sync\b[^\n;&|]*--python[ =])\d+\.\d+(?:\.\d+)?", rf"\g<1>{filling.python}", raw)
        if TIME_TO_LIVE in raw:
            for option, value in filling.options.items():
                raw = _with_option(raw, option, value)
        return raw

    yield from _rewritten(file, rewrite)


def _with_option(raw: str, option: str, value: str) -> str:
    """The command with the option set: its old value replaced, or the option added right behind the script."""
    script = re.escape(TIME_TO_LIVE)
    there = re.compile(rf"({script}\b[^\n;&|#]*?\s--{option}[ =])(\S+?)(?=[\s\"';&|]|$)")
    if there.search(raw):
        return there.sub(rf"\g<1>{value}", raw)
    return re.sub(script, f"{TIME_TO_LIVE} --{option} {value}", raw)


def bucket_name(given: str) -> str:
    """The name in `--bucket`, with or without s3://. `UserError` where it is none."""
    name = given.removeprefix("s3://").rstrip("/")
    if not BUCKET.fullmatch(f"s3://{name}") or not 3 <= len(name) <= 63 or name != name.lower() or ".." in name:
        raise UserError(
            f"--bucket {given}: not a bucket's name; give 3 to 63 lower-case letters, digits and hyphens, no folder"
        )
    return name
