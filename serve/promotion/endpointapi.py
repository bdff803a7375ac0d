"""What the promoting command asks of the endpoint itself: how its promotion goes, what is in service, golden images."""

import contextlib
import itertools
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

import urllib3

from data.errors import UserError
from data.images import Pixels
from serve.client import Client, ClientError, RefusedError
from serve.promotion.candidate import part_of

_TIMEOUT_S: Final = 10.0
_AT_ONCE: Final = 64
_AT_ONCE_S: Final = 2.0


class EndpointApi:
    """An endpoint's GET /promotion and GET /model. One try each: the one who asks asks again anyway.

    `problem` is why the last question had no answer.
    """

    def __init__(self, url: str, key: str = "", *, ca_file: str = "", timeout_s: float = _TIMEOUT_S) -> None:
        """`ca_file`: certificates that an https:// endpoint may show; empty trusts the usual authorities."""
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url}: an endpoint's address begins with http:// or https://")
        self.url = url.rstrip("/")
        self.problem = ""
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        # No redirects: the key must not follow one to another host.
        self._http = urllib3.PoolManager(timeout=timeout_s, retries=False, ca_certs=ca_file or None)

    def promotion(self, *, watching: str = "") -> dict[str, Any] | None:
        """The state of the promotion under way (`promotionroutes.PromotionAnswer`), with `promotion` null where there
        is none. None where the endpoint does not say now. UserError where it does not let us in."""
        return self._get(f"/promotion?watching={watching}" if watching else "/promotion")

    def model(self) -> str | None:
        """Id of the model in service as one replica says it, None where the endpoint does not say now, empty where it
        does not tell us for want of a key: going back to the bundle before takes none."""
        try:
            answer = self._get("/model")
        except UserError:
            return ""
        return None if answer is None else str(answer.get("id"))

    def _get(self, path: str) -> dict[str, Any] | None:
        try:
            answer = self._http.request("GET", self.url + path, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            self.problem = f"{self.url}: {error}"
            return None
        if answer.status in (401, 403):
            raise UserError(
                f"{self.url}: the endpoint refuses the key ({answer.status}); put one into EAGLERAY_KEY "
                "(`python serve/keys.py add NAME` makes one)"
            )
        if answer.status == 404:
            raise UserError(f"{self.url}{path}: nothing there; is this an endpoint of this version of eagleray?")
        with contextlib.suppress(ValueError):
            found = json.loads(answer.data)
            if answer.status == 200 and isinstance(found, dict):
                return found
        self.problem = f"{self.url}: {answer.status} {' '.join(answer.data.decode(errors='replace').split())[:200]}"
        return None


class GoldenTraffic:
    """Requests of our own, for an endpoint that nobody uses now: golden images by turns, over HTTP like anyone's."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._turn = itertools.count()

    def __call__(self, images: Sequence[Pixels], share: float) -> None:
        """Send some, one after the other. UserError where the endpoint refuses them."""
        end = time.monotonic() + _AT_ONCE_S
        for number in itertools.islice(self._turn, _AT_ONCE):
            if time.monotonic() > end:
                return
            try:
                self._client.predict(images[number % len(images)], request_id=_id_within(share))
            except RefusedError as error:
                raise UserError(f"the endpoint refuses a golden image: {error}") from None
            except ClientError:
                return  # it has too much to do, so there is traffic after all


def _id_within(share: float) -> str:
    """A request id that the candidate answers, where it answers any: a tenth of our few requests would teach little."""
    while True:
        name = uuid.uuid4().hex
        if share <= 0 or part_of(name) < share:
            return name
