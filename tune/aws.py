"""The one door to AWS's control plane: a call by its name, all pages of it, and every refusal as one clear line.

The user's own settings hold: AWS_PROFILE, AWS_ACCESS_KEY_ID and the rest, AWS_ENDPOINT_URL. Objects in S3 are
`data/store.py`'s; here a bucket is made and looked at.
"""

import email.utils
import functools
import json
import os
import re
import shlex
import time
from collections.abc import Mapping
from typing import Any, Final

import boto3
import botocore.exceptions as aws
from botocore import xform_name
from botocore.config import Config

from data.errors import UserError

LOG_IN: Final = "log in again (aws sso login, or new keys), or set AWS_PROFILE"
_CREDENTIALS: Final = (
    "no AWS credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run aws configure"
)
_AGAIN: Final = "wait a minute and try again"

HOME: Final = {"aws": "us-east-1", "aws-cn": "cn-north-1", "aws-us-gov": "us-gov-west-1"}
"""The region of each part of AWS that answers for all of it."""

# What AWS says, by code. One that is not here is shown as AWS put it.
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_UNKNOWN_KEY: Final = frozenset(
    {"InvalidClientTokenId", "InvalidAccessKeyId", "UnrecognizedClientException", "AuthFailure", "IncompleteSignature"}
)
_WRONG_SECRET: Final = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException"})
_SKEWED: Final = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_DENIED: Final = frozenset(
    {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Client.UnauthorizedOperation"}
)
_THROTTLED: Final = frozenset(
    {
        *("Throttling", "ThrottlingException", "ThrottledException", "RequestLimitExceeded", "RequestThrottled"),
        *("TooManyRequestsException", "SlowDown", "RequestThrottledException", "PriorRequestNotComplete"),
    }
)
_NOT_SIGNED_UP: Final = frozenset({"OptInRequired", "SubscriptionRequiredException", "Blocked", "PendingVerification"})

# Where the permission is named otherwise than the call.
_ACTIONS: Final = {
    "s3:HeadBucket": "s3:ListBucket",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
}


class AwsError(UserError):
    """What AWS refused, in words; `code` is AWS's own name for it ("" where no answer came at all)."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class Aws:
    """Calls to AWS in one region."""

    def __init__(self, region: str) -> None:
        self.region = region

    def ask(self, service: str, operation: str, /, *, region: str = "", **parameters: Any) -> dict[str, Any]:
        """One call by boto3's names, as in `ask("ec2", "describe_images", ImageIds=[...])`; `AwsError` if refused."""
        client = self._client(service, region or self.region)
        action = _action(client, service, operation)
        try:
            answer: dict[str, Any] = getattr(client, operation)(**parameters)
        except (aws.BotoCoreError, aws.ClientError) as error:
            raise explained(error, action) from error
        return answer

    def all(self, service: str, operation: str, key: str, /, *, region: str = "", **parameters: Any) -> list[Any]:
        """What the pages of a call list under `key`, together."""
        client = self._client(service, region or self.region)
        try:
            pages = client.get_paginator(operation).paginate(**parameters)
            return [item for page in pages for item in page.get(key, ())]
        except (aws.BotoCoreError, aws.ClientError) as error:
            raise explained(error, _action(client, service, operation)) from error

    def _client(self, service: str, region: str) -> Any:  # boto3 makes its classes at run time: no type to name
        try:
            return _client(_settings(), service, region)
        except aws.BotoCoreError as error:
            raise explained(error, service) from error


def _settings() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@functools.lru_cache(maxsize=2)
def _session(_settings: tuple[tuple[str, str], ...]) -> Any:
    """One for all clients: each would read the descriptions of AWS's services anew."""
    return boto3.session.Session()


@functools.lru_cache(maxsize=32)
def _client(settings: tuple[tuple[str, str], ...], service: str, region: str) -> Any:
    retries = {} if "AWS_MAX_ATTEMPTS" in dict(settings) else {"retries": {"max_attempts": 4, "mode": "standard"}}
    config = Config(connect_timeout=5, read_timeout=30, **retries)
    return _session(settings).client(service, region_name=region, config=config)


def _action(client: Any, service: str, operation: str) -> str:
    """The permission that the call needs, as a policy names it: ec2:DescribeImages."""
    prefix = {"service-quotas": "servicequotas", "resourcegroupstaggingapi": "tag"}.get(service, service)
    name = f"{prefix}:{client.meta.method_to_api_mapping[operation]}"
    return _ACTIONS.get(name, name)


def explained(error: Exception, action: str) -> AwsError:
    """What botocore raised during `action`, as one line that says what to do."""
    if isinstance(error, aws.ClientError):
        return _refusal(error, action)
    return AwsError(_unsent(error, action))


def _unsent(error: Exception, action: str) -> str:
    """The call never got an answer."""
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return _CREDENTIALS
    if isinstance(error, aws.ProfileNotFound):
        return f"{error}; set AWS_PROFILE to a profile of ~/.aws/config"
    expired = (aws.SSOError, aws.TokenRetrievalError, aws.CredentialRetrievalError)
    if isinstance(error, expired):
        return f"the AWS login has ended or cannot be read ({_one_line(str(error))}); {LOG_IN}"
    if isinstance(error, (aws.NoRegionError, aws.InvalidRegionError)):
        return f"{_one_line(str(error))}; write provider.region as in us-west-2"
    if isinstance(error, aws.SSLError):
        return f"{action}: no trusted connection to AWS ({_one_line(str(error))}); look at proxy and certificates"
    if isinstance(error, (aws.ConnectionError, aws.HTTPClientError)):
        where = os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        return f"{action}: cannot reach {where}; look at the network, a proxy, and AWS_ENDPOINT_URL"
    return f"{action}: {_one_line(str(error))}; look at the AWS settings"


def _refusal(error: aws.ClientError, action: str) -> AwsError:
    """AWS answered, and said no."""
    said = error.response.get("Error", {})
    code, message = str(said.get("Code", "")), _one_line(str(said.get("Message", "")))
    late = re.search(r"signature (expired|not yet current)|request has expired", message, re.IGNORECASE)
    if code in _SKEWED or (late and (code not in _EXPIRED or _skew(error.response) > 60)):
        minutes = _skew(error.response) / 60
        off = f" by about {minutes:.0f} minutes" if minutes >= 1 else ""
        text = f"this machine's clock is wrong{off}, and AWS refuses what is signed so; set the clock (timedatectl)"
    elif code in _EXPIRED:
        text = f"the AWS session has expired; {LOG_IN}"
    elif code in _UNKNOWN_KEY:
        text = f"AWS does not know these credentials ({code}); look at AWS_PROFILE and AWS_ACCESS_KEY_ID, or {LOG_IN}"
    elif code in _WRONG_SECRET:
        text = f"the secret key does not fit the access key ({code}); set AWS_SECRET_ACCESS_KEY anew, or {LOG_IN}"
    elif code in _DENIED:
        text = _denied(message, action)
    elif code in _THROTTLED:
        text = f"{action}: AWS asks to go slower ({code}); {_AGAIN}"
    elif code in _NOT_SIGNED_UP:
        text = f"{action}: this account may not use the service or region yet ({code}); finish its sign-up in AWS"
    elif int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500:
        text = f"{action}: AWS has a fault of its own ({code}); {_AGAIN}"
    else:
        text = f"{action}: {code}: {message}" if message else f"{action}: {code}"
    return AwsError(text, code)


def _denied(message: str, action: str) -> str:
    """No permission: which, and who could give it."""
    named = re.search(r"not authorized to perform:? ([a-z0-9-]+:[A-Za-z]+)", message)
    action = named[1] if named else action
    if "service control policy" in message:
        return f"your organisation forbids {action} here (a service control policy); only its administrator can lift it"
    if "permissions boundary" in message:
        return f"your permissions boundary does not let you use {action}; ask your administrator to widen it"
    if "explicit deny" in message:
        return f"a policy denies you {action} outright; ask your administrator, or use another login (AWS_PROFILE)"
    return f"no permission for {action}; ask for it, or use another login (AWS_PROFILE)"


def _skew(response: Mapping[str, Any]) -> float:
    """Seconds between this machine's clock and that of AWS's answer; 0.0 where it named none."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return abs(time.time() - email.utils.parsedate_to_datetime(date).timestamp())
    except (TypeError, ValueError):
        return 0.0


def _one_line(text: str) -> str:
    """Without line breaks, and without EC2's encoded message, which is long and says nothing to a person."""
    return " ".join(re.sub(r"Encoded authorization failure message: \S+", "", text).split())


def tags(said: Mapping[str, Any]) -> dict[str, str]:
    """The tags of anything that AWS described."""
    return {each["Key"]: each["Value"] for each in said.get("Tags") or said.get("TagSet") or ()}


def shell(service: str, operation: str, parameters: Mapping[str, Any], region: str) -> str:
    """A call as a line for AWS's own command line, whose names follow boto3's."""
    words = ["aws", {"s3": "s3api"}.get(service, service), operation.replace("_", "-")]
    words += [] if service == "iam" else ["--region", region]
    for name, value in parameters.items():
        words += [f"--{xform_name(name, '-')}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)
