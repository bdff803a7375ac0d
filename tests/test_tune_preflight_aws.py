"""Every refusal of AWS is one line that says what to do; what was asked for is named where it is a permission."""

import email.utils
import time
from typing import Any

import botocore.exceptions as botocore
import pytest

from data.errors import UserError
from tests.cloud import Cloud
from tune.aws import Aws, AwsError, explained, shell

NOW = 1_790_000_000.0
DENIED = "User: arn:aws:iam::123456789012:user/ana is not authorized to perform: {} on resource: * {}"


def refusal(code: str, message: str = "", status: int = 400, seconds: float = 0.0) -> botocore.ClientError:
    """As botocore raises it, with AWS's clock `seconds` ahead of this machine's."""
    headers = {"date": email.utils.formatdate(NOW + seconds, usegmt=True)}
    said: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return botocore.ClientError(said, "DescribeImages")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (botocore.NoCredentialsError(), "no AWS credentials found; set AWS_PROFILE"),
        (botocore.PartialCredentialsError(provider="env", cred_var="x"), "no AWS credentials found; set AWS_PROFILE"),
        (botocore.ProfileNotFound(profile="ana"), "(ana) could not be found; set AWS_PROFILE"),
        (botocore.UnauthorizedSSOTokenError(), "the AWS login has ended"),
        (botocore.SSOTokenLoadError(error_msg="none"), "aws sso login"),
        (botocore.InvalidRegionError(region_name="us west"), "write provider.region"),
        (botocore.EndpointConnectionError(endpoint_url="https://x"), "cannot reach AWS; look at the network"),
        (botocore.ConnectTimeoutError(endpoint_url="https://x"), "cannot reach AWS; look at the network"),
        (botocore.ReadTimeoutError(endpoint_url="https://x"), "cannot reach AWS; look at the network"),
        (botocore.ProxyConnectionError(proxy_url="http://p"), "a proxy"),
        (botocore.SSLError(endpoint_url="https://x", error="bad"), "look at proxy and certificates"),
        (botocore.ParamValidationError(report="no"), "look at the AWS settings"),
        (refusal("ExpiredToken", "expired"), "the AWS session has expired; log in again"),
        (refusal("RequestExpired", "Request has expired.", seconds=1), "the AWS session has expired"),
        (refusal("RequestExpired", "Request has expired.", seconds=900), "clock is wrong by about 15 minutes"),
        (refusal("RequestTimeTooSkewed", "skewed", 403, seconds=-420), "clock is wrong by about 7 minutes"),
        (refusal("SignatureDoesNotMatch", "Signature expired: 1 is now earlier than 2", 403), "clock is wrong"),
        (refusal("InvalidSignatureException", "Signature not yet current: x", 403), "set the clock"),
        (
            refusal("SignatureDoesNotMatch", "The signature we calculated does not match", 403),
            "secret key does not fit",
        ),
        (refusal("AuthFailure", "not able to validate the credentials", 401), "does not know these credentials"),
        (refusal("UnrecognizedClientException"), "AWS_ACCESS_KEY_ID"),
        (refusal("RequestLimitExceeded", status=503), "ec2:DescribeImages: AWS asks to go slower"),
        (refusal("ThrottlingException"), "wait a minute and try again"),
        (refusal("InternalError", status=500), "AWS has a fault of its own"),
        (refusal("OptInRequired", status=401), "may not use the service or region yet"),
        (refusal("InvalidParameterValue", "no\n such"), "ec2:DescribeImages: InvalidParameterValue: no such"),
    ],
)
def test_each_failure_says_what_to_do(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr(time, "time", lambda: NOW)
    told = str(explained(error, "ec2:DescribeImages"))
    assert says in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            "You are not authorized. Encoded authorization failure message: aGVsbG8",
            "no permission for ec2:DescribeImages",
        ),
        (DENIED.format("ec2:RunInstances", ""), "no permission for ec2:RunInstances; ask for it"),
        (DENIED.format("ec2:X", "with an explicit deny in a service control policy"), "organisation forbids ec2:X"),
        (DENIED.format("ec2:X", "with an explicit deny in an identity-based policy"), "denies you ec2:X outright"),
        (DENIED.format("ec2:X", "because no permissions boundary allows it"), "permissions boundary does not let"),
    ],
)
def test_a_missing_permission_is_named(message: str, says: str) -> None:
    told = str(explained(refusal("UnauthorizedOperation", message, 403), "ec2:DescribeImages"))
    assert says in told
    assert "aGVsbG8" not in told


def test_the_permission_behind_a_call(cloud: Cloud) -> None:
    aws = Aws("us-west-2")
    for call, action in (
        ("s3:HeadBucket", "s3:ListBucket"),
        ("service-quotas:GetServiceQuota", "servicequotas:GetServiceQuota"),
        ("ec2:DescribeVpcs", "ec2:DescribeVpcs"),
    ):
        cloud.refuse(call, "AccessDenied", status=403)
        service, _, operation = call.partition(":")
        name = {"HeadBucket": "head_bucket", "GetServiceQuota": "get_service_quota"}.get(operation, "describe_vpcs")
        needed: dict[str, Any] = {"head_bucket": {"Bucket": "b"}, "get_service_quota": {"ServiceCode": "ec2"}}
        with pytest.raises(AwsError, match=f"no permission for {action}"):
            aws.ask(service, name, **needed.get(name, {}))
    with pytest.raises(AwsError, match="no permission for ec2:DescribeVpcs"):
        aws.all("ec2", "describe_vpcs", "Vpcs")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(UserError, match=r"sts:GetCallerIdentity: cannot reach http://127.0.0.1:9"):
        Aws("us-west-2").ask("sts", "get_caller_identity")
    with pytest.raises(UserError, match=r"provider\.region"):
        Aws("not a region").ask("ec2", "describe_vpcs")


def test_a_call_as_a_command() -> None:
    line = shell("s3", "put_bucket_tagging", {"Bucket": "b", "Tagging": {"TagSet": []}}, "us-west-2")
    assert line == """aws s3api put-bucket-tagging --region us-west-2 --bucket b --tagging '{"TagSet": []}'"""
    line = shell("iam", "create_service_linked_role", {"AWSServiceName": "spot.amazonaws.com"}, "us-west-2")
    assert line == "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
