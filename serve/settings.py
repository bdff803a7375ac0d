"""What can be set about an endpoint, checked here; the command line, `serve run` and `user_config` all read these."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from data import cachefolder, store
from data.checks import above_zero, at_least, one_of
from data.errors import UserError

Config = TypeVar("Config")


@dataclass(frozen=True)
class EndpointConfig:
    """What one replica needs to answer. It travels as Ray Serve's `user_config`, so it can change without a restart."""

    bundle: str
    """The trained model: a bundle folder (runs/NAME/bundle) or its s3:// address."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network runs."""
    threads: int = 0
    """CPU threads for the network in each replica. 0 takes the replica's share of CPUs (see cpus-per-replica)."""
    max_batch_size: int = 16
    """Most images that go through the network together."""
    batch_wait_ms: float = 5.0
    """How long a first image waits for company. 0 answers a lone image soonest, but under load images then travel
    alone, because Ray Serve closes the next batch while the network is still busy with the last one."""
    max_body_mb: float = 32.0
    """Largest request body in MiB; a larger one is answered 413 while it arrives, without being kept."""
    max_files: int = 64
    """Most images in one multipart request."""
    body_timeout_s: float = 30.0
    """Seconds that a client may take to send its body before it is answered 408."""
    cache_dir: str = ""
    """Folder for copies of bundles read from s3://. Empty is the user's cache folder."""

    def __post_init__(self) -> None:
        if not self.bundle:
            raise ValueError("bundle must name a bundle folder or s3:// address, got an empty text")
        one_of(self, device=("cpu", "cuda"))
        at_least(self, threads=0, batch_wait_ms=0, max_batch_size=1, max_files=1)
        above_zero(self, "max_body_mb", "body_timeout_s")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1024 * 1024)

    @classmethod
    def from_user_config(cls, user_config: Mapping[str, Any] | None) -> "EndpointConfig":
        """Read a `user_config`; UserError names what is missing, unknown or out of range."""
        if not user_config:
            raise UserError("the deployment has no user_config: give it at least {'bundle': 'runs/NAME/bundle'}")
        return _checked(cls, user_config)

    def as_user_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class ServeConfig:
    """An endpoint: what it answers with, where it listens, and how far it may grow."""

    endpoint: EndpointConfig
    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only; there is no access control yet, so open
    it (0.0.0.0) only on a network that you trust."""
    port: int = 8000
    """Port to listen on."""
    min_replicas: int = 1
    """Copies of the model that always run."""
    max_replicas: int = 2
    """Most copies of the model: the limit of what the endpoint may cost."""
    cpus_per_replica: float = 1.0
    """CPUs that a replica takes."""
    gpus_per_replica: float = 1.0
    """GPUs that a replica takes with --device cuda; 0.5 puts two replicas on one GPU."""
    max_ongoing_requests: int = 32
    """Requests that one replica works on at once."""
    max_queued_requests: int = 128
    """Requests that may wait for a replica; beyond it the answer is 429 with Retry-After, at once."""
    request_timeout_s: float = 120.0
    """Seconds until a request, its body included, is given up with 408."""
    shutdown_s: float = 10.0
    """Seconds that requests under way get to finish when the endpoint stops."""
    dashboard: bool = True
    """Start Ray's dashboard, on this machine only (the local command; a cluster has its own)."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port must be in 1-65535, got {self.port}")
        at_least(self, min_replicas=1, max_ongoing_requests=1, max_queued_requests=1)
        above_zero(self, "cpus_per_replica", "gpus_per_replica", "request_timeout_s", "shutdown_s")
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas must be >= min_replicas ({self.min_replicas}), got {self.max_replicas}")
        if self.request_timeout_s <= self.endpoint.body_timeout_s:
            # Otherwise Ray's proxy gives up first, with a plain text where the replica would explain.
            raise ValueError(
                f"request_timeout_s must be > body_timeout_s ({self.endpoint.body_timeout_s:g}), "
                f"got {self.request_timeout_s:g}"
            )

    def resolved(self) -> "ServeConfig":
        """Make the paths absolute and the number of threads explicit, once."""
        endpoint = dataclasses.replace(
            self.endpoint,
            bundle=store.absolute(self.endpoint.bundle),
            # Left empty it is the user's folder where the replica runs, which need not be this machine.
            cache_dir=cachefolder.resolve(self.endpoint.cache_dir) if self.endpoint.cache_dir else "",
            threads=self.endpoint.threads or max(1, math.floor(self.cpus_per_replica)),
        )
        return dataclasses.replace(self, endpoint=endpoint)

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "ServeConfig":
        """Read the flat names of `serve run serve.app:app bundle=... max_replicas=4` (texts) or of a config file."""
        inner = {field.name for field in dataclasses.fields(EndpointConfig)}
        endpoint = {name: value for name, value in arguments.items() if name in inner}
        outer = {name: value for name, value in arguments.items() if name not in inner}
        return _checked(cls, {**outer, "endpoint": _checked(EndpointConfig, endpoint)})


def _checked(kind: type[Config], values: Mapping[str, Any]) -> Config:
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - names):
        raise UserError(f"unknown setting {', '.join(unknown)}: the settings are {', '.join(sorted(names))}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")) from None
