"""What can be set about an endpoint, checked here; the command line, `serve run` and `user_config` all read these."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError

from data import cachefolder, store
from data.checks import above_zero, at_least, one_of
from data.errors import UserError
from serve.promotion.judge import Limits

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class CandidateConfig(Limits):
    """A model on trial beside the one in service, while a promotion runs (serve/promote.py writes this)."""

    bundle: str
    """The candidate: a bundle folder or its s3:// address."""
    promotion: str
    """The promotion's id: what is counted and judged is counted under it."""
    share: float = 0.0
    """Share of the requests that the candidate answers. 0 is shadow traffic: the model in service answers all."""
    shadow: float = 1.0
    """Share of the requests that are also shown to the model that does not answer them, to compare the two."""
    model: str = ""
    """The id that the bundle had when it was checked; see EndpointConfig."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bundle", "promotion"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        for name in ("share", "shadow"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class EndpointConfig:
    """What one replica needs to answer. It travels as Ray Serve's `user_config`, so it can change without a restart."""

    bundle: str
    """The trained model: a bundle folder (runs/NAME/bundle) or its s3:// address."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network runs."""
    threads: int = 0
    """CPU threads for the network in each replica. 0 takes the replica's share of CPUs (see cpus-per-replica)."""
    one_core: bool = True
    """Keep a replica of one thread on one core while its network is light, which costs less CPU for each request
    (serve/onecore.py)."""
    max_batch_size: int = 16
    """Most images that go through the network together."""
    max_body_mb: float = 32.0
    """Largest request body in MiB; a larger one is answered 413 while it arrives, without being kept."""
    max_files: int = 64
    """Most images in one multipart request."""
    body_timeout_s: float = 30.0
    """Seconds that a client may take to send its body before it is answered 408."""
    cache_dir: str = ""
    """Folder for copies of bundles read from s3://. Empty is the user's cache folder."""
    name: str = "eagleray"
    """What clients call the model in paths such as /v1/models/NAME, /v2/models/NAME and /endpoints/NAME."""
    auth: Literal["keys", "off"] = "keys"
    """Whether a request must bring a key. With "off" anyone who reaches the port can use the endpoint."""
    keys: str = ""
    """The key file (serve/door/keystore.py). Empty is the user's own. Keys in EAGLERAY_KEYS count as well."""
    rate_limit: float = 0.0
    """Requests a second for each key, in each replica; beyond it 429 with Retry-After. 0 is no limit."""
    log: Literal["errors", "all", "off"] = "errors"
    """Which requests have a line in the replica's log: those that failed or were slow, all, none."""
    cors: str = ""
    """Origins, separated by commas, whose pages may call the endpoint from a browser. Empty is none."""
    corrections: str = ""
    """Folder or s3:// address that keeps what people correct on the page, for the next search. Empty is off."""
    max_corrections: int = 10_000
    """Most corrections that are kept there."""
    max_corrections_mb: float = 1024.0
    """Most MiB of their images."""
    # No flags: only the command that starts an endpoint and promotions set these.
    previous: Annotated[str, tyro.conf.Suppress] = ""
    """The bundle that was in service before this one: what `serve/promote.py --rollback` goes back to."""
    model: Annotated[str, tyro.conf.Suppress] = ""
    """The id of the model that `bundle` held when it came into service. A replica that starts later loads no other,
    whatever lies at that path by then. Empty takes what is there."""
    previous_model: Annotated[str, tyro.conf.Suppress] = ""
    """The same of `previous`."""
    candidate: Annotated[CandidateConfig | None, tyro.conf.Suppress] = None
    """The model on trial, while a promotion runs."""

    def __post_init__(self) -> None:
        if not self.bundle:
            raise ValueError("bundle must name a bundle folder or s3:// address, got an empty text")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", self.name):
            raise ValueError(f"name must be 1 to 63 letters, digits, _ or -, got {self.name!r}")
        one_of(self, device=("cpu", "cuda"), auth=("keys", "off"), log=("errors", "all", "off"))
        at_least(self, threads=0, max_batch_size=1, max_files=1, rate_limit=0, max_corrections=0)
        above_zero(self, "max_body_mb", "body_timeout_s", "max_corrections_mb")

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
    """Address to listen on. The default is reachable from this machine only; 0.0.0.0 opens it to the network, where
    keys should travel through TLS alone."""
    port: int = 8000
    """Port to listen on."""
    min_replicas: int = 1
    """Copies of the model that always run. 0 lets an endpoint that nobody uses cost nothing: the next request then
    waits until a replica has started."""
    max_replicas: int = 2
    """Most copies of the model: the limit of what the endpoint may cost."""
    cpus_per_replica: float = 1.0
    """CPUs that a replica takes."""
    gpus_per_replica: float = 1.0
    """GPUs that a replica takes with --device cuda; 0.5 puts two replicas on one GPU."""
    max_ongoing_requests: int = 32
    """Requests that one replica works on at once."""
    max_queued_requests: int = 224
    """Requests that may wait for a replica, at each of them; beyond it the answer is 429 with Retry-After, at once."""
    request_timeout_s: float = 120.0
    """Seconds that a request may take from its arrival to its answer before it is given up with 504, or with 408 where
    Ray's own proxy held it (`--ingress python`, or no replica was up)."""
    shutdown_s: float = 10.0
    """Seconds that requests under way get to finish when the endpoint stops."""
    upscale_s: float = 5.0
    """Seconds of load above what the replicas can take until another one starts."""
    idle_s: float = 120.0
    """Seconds of load below it until one stops."""
    ingress: Literal["haproxy", "python"] = "haproxy"
    """What stands before the replicas: HAProxy, or Ray's proxy in Python, where a request costs many times as much.
    The local command's; on a cluster the environment of its nodes decides (serve/running/ingress.py)."""
    tls_cert: str = ""
    """Certificate file (PEM, with its chain) to serve HTTPS with. It is read once, at the start."""
    tls_key: str = ""
    """Its private key file (PEM, without a password)."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", self.host):
            raise ValueError(f"host must be an address or a name of this machine, got {self.host!r}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port must be in 1-65535, got {self.port}")
        one_of(self, ingress=("haproxy", "python"))
        at_least(self, min_replicas=0, max_ongoing_requests=1, max_queued_requests=1)
        above_zero(self, "cpus_per_replica", "gpus_per_replica", "request_timeout_s", "shutdown_s")
        above_zero(self, "upscale_s", "idle_s")
        at_least(self, max_replicas=1)
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas must be >= min_replicas ({self.min_replicas}), got {self.max_replicas}")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key must be given together: a certificate and its private key")
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
            bundle=pinned(self.endpoint.bundle),
            keys=_absolute(self.endpoint.keys),
            corrections=_absolute(self.endpoint.corrections),
            previous=pinned(self.endpoint.previous) if self.endpoint.previous else "",
            # Left empty it is the user's folder where the replica runs, which need not be this machine.
            cache_dir=cachefolder.resolve(self.endpoint.cache_dir) if self.endpoint.cache_dir else "",
            threads=self.endpoint.threads or max(1, math.floor(self.cpus_per_replica)),
        )
        tls_cert, tls_key = _absolute(self.tls_cert), _absolute(self.tls_key)
        return dataclasses.replace(self, endpoint=endpoint, tls_cert=tls_cert, tls_key=tls_key)

    def as_arguments(self) -> dict[str, Any]:
        """The flat names that `from_arguments` reads, JSON-ready."""
        outer = {name: value for name, value in dataclasses.asdict(self).items() if name != "endpoint"}
        return {**outer, **self.endpoint.as_user_config()}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "ServeConfig":
        """Read the flat names of `serve run serve.app:app bundle=... max_replicas=4` (texts) or of a config file."""
        inner = {field.name for field in dataclasses.fields(EndpointConfig)}
        endpoint = {name: value for name, value in arguments.items() if name in inner}
        outer = {name: value for name, value in arguments.items() if name not in inner}
        return _checked(cls, {**outer, "endpoint": _checked(EndpointConfig, endpoint)})


def pinned(bundle: str) -> str:
    """A bundle's folder itself, where `bundle` leads to it through a link such as runs/latest, which moves on."""
    path = store.absolute(bundle)
    return path if store.is_remote(path) else os.path.realpath(path)


def _absolute(path: str) -> str:
    return store.absolute(path) if path else ""


def _checked(kind: type[Config], values: Mapping[str, Any]) -> Config:
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if isinstance(values.get("candidate"), Mapping):
        values = {**values, "candidate": _checked(CandidateConfig, values["candidate"])}
    if unknown := sorted(set(values) - names):
        raise UserError(f"unknown setting {', '.join(unknown)}: the settings are {', '.join(sorted(names))}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")) from None
