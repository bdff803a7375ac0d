"""boto3's own client at the door: what it prepares gets in, and it understands a refusal."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import uvicorn
from botocore.config import Config as BotoConfig
from botocore.exceptions import ClientError

from serve.door.keystore import Keys
from tests.doors import Config
from tests.signing import BODY, HOST, REPLAYS, SECRET, Request, door, keys, send

__all__ = ["keys"]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def make(endpoint: str, secret: str = SECRET) -> Any:
        return boto3.client(
            "sagemaker-runtime",
            endpoint_url=endpoint,
            region_name="ap-southeast-2",
            aws_access_key_id="ana",
            aws_secret_access_key=secret,
            config=BotoConfig(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=10),
        )

    return make


@pytest.mark.parametrize("name", ["eagleray", "my-model-2"])
def test_a_request_that_boto3_prepared(keys: Keys, runtime: Callable[..., Any], name: str) -> None:
    class CapturedError(Exception):
        pass

    caught: list[Any] = []

    def catch(request: Any, **_: Any) -> None:
        caught.append(request)
        raise CapturedError

    client = runtime(f"http://{HOST}")
    client.meta.events.register("before-send.sagemaker-runtime.InvokeEndpoint", catch)
    with contextlib.suppress(CapturedError):
        client.invoke_endpoint(
            EndpointName=name,
            ContentType="application/x-image",
            Body=BODY,
            CustomAttributes="a b",
            Accept="application/json",
        )
    [prepared] = caught
    headers = [(key, value if isinstance(value, str) else value.decode()) for key, value in prepared.headers.items()]
    request = Request(prepared.method, urlsplit(prepared.url).path, [("Host", HOST), *headers], prepared.body)
    assert request.target == f"/endpoints/{name}/invocations"
    assert send(door(keys), request).status == 200
    for change in REPLAYS.values():
        if change is not REPLAYS["a path decoded once"]:  # there is nothing to decode in this one
            assert send(door(keys), change(request)).status == 403


@pytest.fixture
def address(keys: Keys) -> Iterator[str]:
    """The door before a small application, on a socket, behind the server that Ray uses."""
    app = door(keys, Config(max_body_bytes=2**20))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listening.close()


def test_boto3_over_a_socket(address: str, runtime: Callable[..., Any]) -> None:
    def invoke(client: Any, body: bytes) -> Any:
        return client.invoke_endpoint(EndpointName="eagleray", ContentType="image/jpeg", Body=body)

    answer = invoke(runtime(address), b"\xff\xd8" * 200_000)  # more than travels in one piece
    assert json.loads(answer["Body"].read()) == {"caller": "ana"}
    with pytest.raises(ClientError) as refused:
        invoke(runtime(address, "a-wrong-secret"), BODY)
    assert refused.value.response["Error"]["Code"] == "InvalidSignatureException"
    assert "look at the access key id" in refused.value.response["Error"]["Message"]
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
