"""What the pre-flight looks at, as plain values, and what it says: facts in, findings out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

from tune.cloud.clusterfile import ClusterFile
from tune.cloud.preflightsettings import Plan

Verdict = Literal["ok", "warning", "stop"]
VERDICTS: Final[tuple[Verdict, ...]] = ("stop", "warning", "ok")
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One line of the pre-flight: what was looked at, how it stands, and, unless it is ok, what to do."""

    check: str
    verdict: Verdict
    what: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.remedy or self.verdict == "ok", self

    def as_dict(self) -> dict[str, str]:
        """JSON-ready."""
        return asdict(self)


class CannotTellError(Exception):
    """A check needs a fact that could not be had; the text says why."""


@dataclass(frozen=True)
class Fact(Generic[T]):
    """An answer, or why there is none. A check that asks for `value` in vain is reported as not made."""

    answer: T | None = None
    why_not: str = ""

    @property
    def value(self) -> T:
        if self.why_not or self.answer is None:
            raise CannotTellError(self.why_not or "AWS was not asked; mend credentials and region first")
        return self.answer


@dataclass(frozen=True)
class Identity:
    """Who asks."""

    arn: str
    account: str


@dataclass(frozen=True)
class Machine:
    """What EC2 says of an instance type."""

    name: str
    vcpus: int
    memory_mib: int
    architectures: tuple[str, ...] = ("x86_64",)
    gpu: str = ""
    """As in "NVIDIA A10G"; "" without one."""
    gpus: int = 0
    gpu_mib: int = 0
    """Memory of one GPU."""
    spot: bool = True
    """Whether it can be rented as spot at all."""

    @property
    def has_gpu(self) -> bool:
        """A GPU that CUDA runs on."""
        return self.gpus > 0 and self.gpu.startswith("NVIDIA")


@dataclass(frozen=True)
class Image:
    """A machine image. `disk_gib` is the least size of its root disk, which lies at `root`."""

    name: str
    owner: str
    state: str = "available"
    architecture: str = "x86_64"
    root: str = "/dev/sda1"
    disk_gib: int = 0
    deprecated: str = ""
    """The day from which it is, or ""."""


@dataclass(frozen=True)
class Subnet:
    name: str
    zone: str
    vpc: str
    public: bool = True
    """Whether machines in it get a public address by themselves."""
    default: bool = False
    """Whether it is the default VPC's own for its zone."""


@dataclass(frozen=True)
class Group:
    """A security group: its id, VPC and inbound rules as EC2 lists them."""

    id: str
    name: str
    vpc: str
    rules: tuple[dict[str, Any], ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """An instance profile's role: its name, address, policies, and who may take it."""

    role: str
    arn: str
    policies: tuple[Mapping[str, Any], ...] = ()
    trust: Mapping[str, Any] = field(default_factory=dict)
    boundary: bool = False


@dataclass(frozen=True)
class Bucket:
    """`region` is "" where there is no such bucket; `writable` is "" or why nothing could be written."""

    region: str
    writable: str = ""


@dataclass(frozen=True)
class Quota:
    name: str
    vcpus: float


@dataclass(frozen=True)
class Running:
    """A machine of this account that counts against a quota now."""

    instance_type: str
    spot: bool
    vcpus: int
    cluster: str = ""
    """Of which cluster, by Ray's tag."""


@dataclass(frozen=True)
class Cost:
    """What an hour costs: `source` says by whom and from when."""

    usd: float
    source: str


@dataclass(frozen=True)
class Needs:
    """Bytes of GPU memory: below `least` training cannot work, with `most` it does."""

    least: float
    most: float


@dataclass(frozen=True)
class Here:
    """This machine: what it runs, and what the project beside the cluster file pins."""

    python: str
    ray: str
    ray_pinned: str
    """"" where no project lies beside the cluster file."""
    missing: tuple[str, ...] = ()
    """What the file's file_mounts name and this machine has not."""


@dataclass(frozen=True)
class Facts:
    """All that a check may look at."""

    file: ClusterFile
    here: Here
    plan: Plan = field(default_factory=Plan)
    needs: Fact[Needs] = field(default_factory=Fact)
    identity: Fact[Identity] = field(default_factory=Fact)
    regions: Fact[Mapping[str, str]] = field(default_factory=Fact)
    """Region -> whether it is enabled, in AWS's words."""
    machines: Fact[Mapping[str, Machine]] = field(default_factory=Fact)
    """The file's instance types that exist, and where one lacks a GPU all types that have one."""
    offered: Fact[Mapping[str, frozenset[str]]] = field(default_factory=Fact)
    """Instance type -> zones of the region."""
    subnets: Fact[tuple[Subnet, ...]] = field(default_factory=Fact)
    """All of the region."""
    default_vpc: Fact[str] = field(default_factory=Fact)
    """Its id; "none" where the region has none."""
    groups: Fact[tuple[Group, ...]] = field(default_factory=Fact)
    """Those that the file names, by name or id."""
    keys: Fact[frozenset[str]] = field(default_factory=Fact)
    images: Fact[Mapping[str, Image]] = field(default_factory=Fact)
    """The file's images that exist."""
    bucket: Fact[Bucket] = field(default_factory=Fact)
    profiles: Fact[Mapping[str, Profile]] = field(default_factory=Fact)
    """The file's instance profiles that exist."""
    spot_role: Fact[bool] = field(default_factory=Fact)
    quotas: Mapping[str, Fact[Quota]] = field(default_factory=dict)
    """By code."""
    running: Fact[tuple[Running, ...]] = field(default_factory=Fact)
    spot_prices: Fact[Mapping[tuple[str, str], float]] = field(default_factory=Fact)
    """(instance type, zone) -> USD an hour now."""
    on_demand: Mapping[str, Fact[Cost]] = field(default_factory=dict)
    """By instance type."""
    launch: Fact[str] | None = None
    """"" where a dry run of the head succeeds, else why not; None where there is nothing to try with yet."""
    private_key: Literal["", "missing", "open", "fine"] = ""
    """auth.ssh_private_key on this disk; "" where the file names none."""
