"""The settings of `tune/preflight.py`."""

import re
from dataclasses import dataclass, field, fields
from typing import Final, Literal

import tyro

from data.checks import at_least, one_of

_WRITTEN: Final = ("region", "bucket", "ssh_from", "subnets", "image", "ttl", "max_usd", "with_metrics")
MODELS: Final = ("cnn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2")


@dataclass(frozen=True)
class Plan:
    """What will be trained on the cluster, by the search's own flags: for the check of memory."""

    model: str = "resnet18"
    """The network, as in tune/search.py --model."""
    base: Literal["frozen", "finetune"] = "frozen"
    """Whether only its head is trained (frozen), or every weight (finetune)."""
    image_size: int = 224
    """Side of the images in pixels."""
    batch_size: int = 32
    """Images of one step of training."""

    def __post_init__(self) -> None:
        one_of(self, model=MODELS, base=("frozen", "finetune"))
        at_least(self, image_size=1, batch_size=1)


@dataclass(frozen=True)
class PreflightConfig:
    """Look whether a cluster file will work and what it can cost, before a cent is spent. Fills the file in (--write),
    makes what it names (--create), and afterwards says what still bills (--leftovers)."""

    file: tyro.conf.Positional[str] = "cluster.yaml"
    """The cluster file."""
    json: bool = False
    """Print JSON instead of a table."""
    leftovers: bool = False
    """List what is left of the cluster in AWS; the exit code is 1 if any of it bills."""
    write: bool = False
    """Fill the values below into the file, in place; comments and layout stay."""
    create: bool = False
    """Make what the file names and AWS lacks: bucket, roles and instance profiles, security group, spot's role."""
    print: bool = False
    """With --create: print the commands of AWS's own command line instead."""
    region: str = ""
    """With --write: where to rent, as us-west-2; empty: as the file says."""
    bucket: str = ""
    """With --write: the bucket for data and results."""
    ssh_from: str = ""
    """With --write: the one address that may log in, as AWS sees it (curl https://checkip.amazonaws.com)."""
    subnets: str = ""
    """With --write: subnets, comma-separated; empty: those of the default VPC, where the file has none yet."""
    image: str = ""
    """With --write: a machine image (ami-…), or latest for the newest Deep Learning Base image; empty keeps one that is
    filled in."""
    ttl: str = ""
    """With --write: when the cluster ends by itself, counted from the head's start, as 8h or 90m; 0 is never, empty: as
    the file says."""
    max_usd: float = 0.0
    """With --write: what its machines may cost before it ends by itself; 0: as the file says."""
    with_metrics: bool = False
    """With --write: Prometheus and Grafana on the head."""
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        at_least(self, max_usd=0)
        defaults = {f.name: f.default for f in fields(self)}
        given = [f"--{name.replace('_', '-')}" for name in _WRITTEN if getattr(self, name) != defaults[name]]
        if given and not self.write:
            raise ValueError(f"{', '.join(given)} changes the file; give --write too")
        if self.leftovers and (self.write or self.create):
            raise ValueError("--leftovers only looks; give it without --write and --create")
        if self.json and self.create:
            raise ValueError("--json tells what was found or written; give it without --create")
        if self.print and not self.create:
            raise ValueError("--print shows what --create would do; give --create too")
        if self.ttl and not re.fullmatch(r"\d+(\.\d+)?[smhd]|0", self.ttl):
            raise ValueError(f"ttl must be a time as 8h, 90m or 2d, or 0, got {self.ttl}")
