"""AWS's Signature Version 4, verified: what boto3's SageMaker runtime client puts on its requests.

Source: "Create a signed AWS API request" in the AWS IAM user guide, and botocore.auth.SigV4Auth, which signs so.
The signature covers the method, the path, the query, the named headers, the hash of the body and a date. A request
that somebody overhears can be sent again, unchanged, as long as its date holds; only TLS prevents the overhearing.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

ALGORITHM: Final = b"AWS4-HMAC-SHA256"
SERVICE: Final = "sagemaker"
SKEW_S: Final = 300.0
"""How far a request's date may lie from this machine's clock, both ways."""
_LONGEST: Final = 4096
_AUTHORIZATION: Final = re.compile(
    r"Credential=(?P<name>[A-Za-z0-9_.-]{1,64})/(?P<day>\d{8})/(?P<region>[a-z0-9-]{1,32})/(?P<service>[a-z0-9-]{1,32})"
    r"/aws4_request,\s*SignedHeaders=(?P<headers>[a-z0-9;._-]{1,2048}),\s*Signature=(?P<signature>[0-9a-f]{64})",
    re.ASCII,
)
_HASH: Final = re.compile(rb"[0-9a-f]{64}")
_DATE: Final = re.compile(r"\d{8}T\d{6}Z", re.ASCII)

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI gives them: names in lower case, in the order in which they came."""


class SignatureFaultError(Exception):
    """A signature that cannot hold, whoever made it. The text may be shown to the caller."""


@dataclass(frozen=True)
class Signed:
    """The signature of one request, taken apart and not yet checked."""

    name: str
    """The access key id."""
    time: str
    """As it was sent: 20250131T235959Z."""
    region: str
    headers: tuple[str, ...]
    """The names of the headers that the signature covers."""
    signature: str = field(repr=False)

    @property
    def scope(self) -> str:
        return f"{self.time[:8]}/{self.region}/{SERVICE}/aws4_request"


def parsed(authorization: bytes, headers: Headers, now: float) -> Signed:
    """Take the signature apart. SignatureFaultError for one that is malformed, or from another time than `now`.

    `authorization` is the header's value after the algorithm, `now` is in seconds since 1970.
    """
    found = None
    if len(authorization) <= _LONGEST:
        found = _AUTHORIZATION.fullmatch(authorization.decode("latin-1").strip())
    if not found:
        raise SignatureFaultError("the Authorization header is not AWS's: let boto3 or another AWS SDK build it")
    names = tuple(found["headers"].split(";"))
    if not {"host", "x-amz-date"} <= set(names) or sorted(set(names)) != list(names):
        raise SignatureFaultError("the signed headers must hold host and x-amz-date, sorted, each once")
    if found["service"] != SERVICE:
        raise SignatureFaultError(f"signed for the service {found['service']}: sign for {SERVICE}")
    if any(name == b"x-amz-content-sha256" and not _HASH.fullmatch(value) for name, value in headers):
        raise SignatureFaultError("the body must be signed too: X-Amz-Content-SHA256 is no SHA-256 in hex")
    dates = [value for name, value in headers if name == b"x-amz-date"]
    time = dates[0].decode("latin-1") if len(dates) == 1 else ""
    _check_time(time, found["day"], now)
    return Signed(found["name"], time, found["region"], names, found["signature"])


def _check_time(time: str, day: str, now: float) -> None:
    try:
        if not _DATE.fullmatch(time) or time[:8] != day:
            raise ValueError
        sent = datetime.strptime(time, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise SignatureFaultError("X-Amz-Date must be one time like 20250131T235959Z, of the signature's day") from None
    if abs(sent - now) > SKEW_S:
        here = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
        raise SignatureFaultError(f"signed at {time}, and here it is {here}: set your clock and sign again")


def body_claim_holds(headers: Headers, body_sha256: str) -> bool:
    """Whether what the request itself says of its body, where it says something, is true."""
    claims = [value for name, value in headers if name == b"x-amz-content-sha256"]
    return all(hmac.compare_digest(claim, body_sha256.encode()) for claim in claims)


def holds(
    signed: Signed, secret: str, *, method: str, raw_path: bytes, query: bytes, headers: Headers, body_sha256: str
) -> bool:
    """Whether this secret made the signature, for exactly this request.

    `raw_path` and `query` are as they were sent, still percent-encoded; `body_sha256` is in hex.
    """
    values: dict[str, list[bytes]] = {name: [] for name in signed.headers}
    for name, value in headers:
        if (known := name.decode("latin-1")) in values:
            values[known].append(b" ".join(value.split()))
    if not all(values.values()):
        return False
    canonical = b"\n".join(
        (
            method.upper().encode(),
            _canonical_path(raw_path),
            _canonical_query(query),
            *(name.encode() + b":" + b",".join(values[name]) for name in signed.headers),
            b"",
            ";".join(signed.headers).encode(),
            body_sha256.encode(),
        )
    )
    to_sign = "\n".join((ALGORITHM.decode(), signed.time, signed.scope, hashlib.sha256(canonical).hexdigest()))
    key = f"AWS4{secret}".encode()
    for part in signed.scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    expected = hmac.digest(key, to_sign.encode(), "sha256").hex()
    return hmac.compare_digest(expected, signed.signature)


def _canonical_path(raw: bytes) -> bytes:
    """The path without empty, `.` and `..` parts, percent-encoded once more than it was sent (S3 alone does not)."""
    parts: list[bytes] = []
    for part in raw.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    end = b"/" if parts and raw.endswith(b"/") else b""
    return quote(b"/" + b"/".join(parts) + end, safe="/~").encode()


def _canonical_query(raw: bytes) -> bytes:
    """The pairs as they were sent, sorted by name and then by value."""
    if not raw:
        return b""
    return b"&".join(b"=".join(pair) for pair in sorted(part.partition(b"=")[::2] for part in raw.split(b"&")))
