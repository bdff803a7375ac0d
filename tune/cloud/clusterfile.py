"""What cluster.yaml says, as plain values: who is rented where, as what, reachable from whom, and what is unfilled."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import yaml

from data import store
from data.errors import UserError
from tune.cloud.inboundrules import SSH, addresses, reaches
from tune.cloud.nodetypes import NodeType, node_type

# What the committed file holds where --write has yet to fill in; each is refused by AWS or reaches nobody.
UNSET_IMAGE: Final = "ami-00000000000000000"
UNSET_SUBNET: Final = "subnet-00000000000000000"
UNSET_GROUP: Final = "sg-00000000000000000"
UNSET_ADDRESS: Final = "192.0.2.1/32"
UNSET_NAME: Final = "eagleray-UNSET"
UNSET: Final = {
    UNSET_IMAGE: "the machine image",
    UNSET_SUBNET: "the subnets",
    UNSET_GROUP: "the security group",
    UNSET_ADDRESS: "the address that SSH is open to",
    UNSET_NAME: "the bucket and the instance profiles",
}

BUCKET: Final = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9.-]*)")
OPTION: Final = r"{script}\b[^\n;&|#]*?\s--{option}[ =](\S+?)(?=[\s\"';&|]|$)"
# libyaml, where PyYAML was built with it, is ten times faster and says the same.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TIME_TO_LIVE: Final = "tune/nodes/timetolive.py"


@dataclass(frozen=True)
class Unfilled:
    """A placeholder in line `line`, the first of them 1."""

    line: int
    text: str
    what: str


@dataclass(frozen=True)
class ClusterFile:
    """A cluster.yaml that was read; `config` is all of it."""

    path: str
    text: str
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.config["cluster_name"])

    @property
    def provider(self) -> dict[str, Any]:
        return dict(self.config["provider"])

    @property
    def region(self) -> str:
        return str(self.provider["region"])

    @property
    def max_workers(self) -> int:
        """Workers at one time, of all types together; Ray's own default is 2."""
        return int(self.config.get("max_workers", 2))

    @cached_property
    def types(self) -> tuple[NodeType, ...]:
        """The head first."""
        head = self.config["head_node_type"]
        found = [node_type(name, entry, name == head, self.max_workers) for name, entry in self._entries.items()]
        return tuple(sorted(found, key=lambda kind: not kind.head))

    @property
    def _entries(self) -> dict[str, dict[str, Any]]:
        return dict(self.config["available_node_types"])

    @property
    def head(self) -> NodeType:
        return self.types[0]

    @property
    def workers(self) -> tuple[NodeType, ...]:
        return self.types[1:]

    @property
    def mounted(self) -> tuple[str, ...]:
        """What the launcher copies to the nodes: paths on this machine, relative ones from where `ray up` is called."""
        return tuple(sorted({str(source) for source in (self.config.get("file_mounts") or {}).values()}))

    @cached_property
    def scalars(self) -> tuple[tuple[tuple[str | int, ...], yaml.ScalarNode], ...]:
        """All values that are no mapping or list, each with the keys that lead to it."""
        return tuple(scalars(self.text))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All scalars: commands, names, numbers as text. Comments are not among them."""
        return tuple(node.value for _, node in self.scalars)

    @property
    def bucket(self) -> str:
        """The name in the first s3:// address; "" where there is none."""
        found = next((match for text in self.texts if (match := BUCKET.search(text))), None)
        return found[1] if found else ""

    @property
    def group(self) -> dict[str, Any]:
        """provider.security_group: GroupName and IpPermissions."""
        return dict(self.provider.get("security_group") or {})

    @property
    def group_name(self) -> str:
        return str(self.group.get("GroupName") or f"ray-autoscaler-{self.name}")

    @property
    def group_ids(self) -> set[str]:
        """Of the security groups that its node types name, those that are filled in."""
        return {name for kind in self.types for name in kind.groups} - {UNSET_GROUP}

    @property
    def ssh_from(self) -> tuple[str, ...]:
        """The addresses (CIDR) that a rule of the file lets in to port 22."""
        rules = [rule for rule in self.group.get("IpPermissions") or () if reaches(rule, SSH)]
        return tuple(cidr for rule in rules for cidr in addresses(rule))

    def option(self, script: str, option: str) -> str:
        """What a command of the file gives to a script of ours as --option; "" where it says nothing."""
        pattern = re.compile(OPTION.format(script=re.escape(script), option=option))
        found = next((match for text in self.texts if (match := pattern.search(text))), None)
        return found[1] if found else ""

    @property
    def missing(self) -> str:
        """What is unfilled, in words; "" where nothing is."""
        return ", ".join(dict.fromkeys(each.what for each in self.unfilled))

    @cached_property
    def unfilled(self) -> tuple[Unfilled, ...]:
        """Placeholders, in the order of the lines."""
        return tuple(
            Unfilled(node.start_mark.line + 1, placeholder, what)
            for _, node in self.scalars
            for placeholder, what in UNSET.items()
            if placeholder in node.value
        )


def read(path: str) -> ClusterFile:
    """The file at `path`. `UserError` with the line where it is no YAML, or not one of Ray's for AWS."""
    blob = store.read(store.absolute(path))
    try:
        text = blob.decode("utf-8-sig")
        return parse(path, text)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def parse(path: str, text: str) -> ClusterFile:
    """As `read`, of a text that is at hand."""
    try:
        config = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: no YAML: {getattr(error, 'problem', error)}; mend that line") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a cluster's configuration; begin with the committed cluster.yaml")
    for key, kind in (("cluster_name", str), ("provider", dict), ("available_node_types", dict)):
        if not isinstance(config.get(key), kind):
            raise UserError(f"{path}: {key} is missing or no {kind.__name__}; look at the committed cluster.yaml")
    if config["provider"].get("type") != "aws":
        raise UserError(f"{path}: provider.type is {config['provider'].get('type')!r}; this looks at AWS only")
    if not isinstance(config["provider"].get("region"), str):
        raise UserError(f"{path}: provider.region is missing; write one, as us-west-2")
    if config.get("head_node_type") not in config["available_node_types"]:
        raise UserError(f"{path}: head_node_type {config.get('head_node_type')!r} is none of available_node_types")
    for name, entry in config["available_node_types"].items():
        if not isinstance((entry or {}).get("node_config"), dict):
            raise UserError(f"{path}: node type {name} has no node_config; give it one")
    return ClusterFile(path, text, config)


def root(text: str) -> yaml.Node:
    """The text's tree, whose nodes know where they begin and end in it."""
    tree = yaml.compose(text, Loader=_LOADER)
    assert isinstance(tree, yaml.Node), "an empty text was refused before"
    return tree


def scalars(text: str) -> Iterator[tuple[tuple[str | int, ...], yaml.ScalarNode]]:
    """The values of a YAML text that are no mapping or list, each once, with the keys that lead to it."""
    seen: set[int] = set()  # an alias is its anchor's node again
    waiting: list[tuple[tuple[str | int, ...], yaml.Node]] = [((), root(text))]
    while waiting:
        path, node = waiting.pop()
        if node.start_mark.index in seen and isinstance(node, yaml.ScalarNode):
            continue
        seen.add(node.start_mark.index)
        if isinstance(node, yaml.ScalarNode):
            yield path, node
        elif isinstance(node, yaml.MappingNode):
            waiting += reversed([((*path, key.value), value) for key, value in node.value])
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed([((*path, number), value) for number, value in enumerate(node.value)])


def project_folder(path: str) -> str:
    """Where the cluster file lies, and beside it the pins of the project."""
    return os.path.dirname(os.path.realpath(path))
