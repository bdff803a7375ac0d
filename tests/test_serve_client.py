"""The client against a server that misbehaves on purpose: it answers once, rightly, or says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import UserError
from data.images import decode
from serve.client import AnswerError, Client, Problem, RefusedError
from tests.faultyserver import ANSWER, ENTRY, Asked, Turn, error, plain, reply, right, serving


def test_an_answer_and_the_request_behind_it() -> None:
    with serving(right) as server, server.client(key="secret") as client:
        assert client.predict(b"image") == ANSWER
        assert client.predict(b"other", request_id="mine-1") == ANSWER
    first, second = server.asked
    assert first.line == "POST /predict HTTP/1.1"
    assert first.body == b"image"
    assert first.headers["authorization"] == "Bearer secret"
    assert len(first.id) == 32
    assert second.id == "mine-1"
    assert server.connections == 1


def test_without_a_key_none_is_sent() -> None:
    with serving(right) as server, server.client() as client:
        client.predict(b"image")
    assert "authorization" not in server.asked[0].headers


def test_model_and_ready() -> None:
    with serving(right) as server, server.client() as client:
        found = client.model()
        assert (found.id, found.classes, found.about["engine"]) == ("m1", ("anemone", "crab"), "torch")
        assert client.ready()
    assert server.asked[1].line == "GET /healthz HTTP/1.1"
    assert not client.ready()  # nobody listens any more
    with serving(error(503, "not_ready")) as server, server.client() as client:
        assert not client.ready()


def test_an_answer_to_another_request_never_counts() -> None:
    stray = {"model": "m1", "predictions": [{**ENTRY, "label": "wrong"}]}
    with serving(reply(200, stray, id_="another"), right) as server, server.client() as client:
        assert client.predict(b"image") == ANSWER
    assert server.connections == 2  # what comes next on such a connection would be a stranger's as well
    with serving(reply(200, stray, id_="another")) as server, server.client(retries=2) as client:
        with pytest.raises(AnswerError) as caught:
            client.predict(b"image")
        assert caught.value.code == "wrong_request_id"
    assert len(server.asked) == 3


def test_the_id_may_stand_there_twice() -> None:
    def twice(asked: Asked) -> bytes:
        return reply(200, {"model": "m1", "predictions": [ENTRY]}, f"X-Request-ID: {asked.id}")(asked)

    with serving(twice) as server, server.client() as client:
        assert client.predict(b"image") == ANSWER


@pytest.mark.parametrize(
    "page",
    [
        reply(200, "<html>a page</html>"),
        reply(200, {"predictions": [ENTRY]}),
        reply(200, {"model": "m1", "predictions": []}),
        reply(200, {"model": "m1", "predictions": [{**ENTRY, "probability": "high"}]}),
        reply(200, {"model": "m1", "predictions": [ENTRY]}, id_=""),
    ],
)
def test_what_is_no_answer_of_ours_is_not_taken_for_one(page: Turn) -> None:
    with serving(page) as server, server.client() as client, pytest.raises(AnswerError, match="look at the address"):
        client.predict(b"image")
    assert len(server.asked) == 1


def test_a_refusal_is_told_with_its_code_and_not_tried_again() -> None:
    with serving(error(403, "wrong_key")) as server, server.client(key="x") as client:
        with pytest.raises(RefusedError, match="it is wrong_key") as caught:
            client.predict(b"image")
        assert (caught.value.status, caught.value.code) == (403, "wrong_key")
        assert caught.value.request_id == server.asked[0].id
    with serving(plain(404, "Path '/predict' not found.")) as server, server.client() as client:
        with pytest.raises(RefusedError, match="HTTP 404: Path") as caught:
            client.predict(b"image")
        assert caught.value.code == "http_404"
    assert len(server.asked) == 1


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with serving(right) as other:
        moved = reply(302, "", f"location: http://127.0.0.1:{other.port}/predict")
        with serving(moved) as server, server.client(key="secret") as client, pytest.raises(RefusedError):
            client.predict(b"image")
    assert other.asked == []


def test_an_image_that_fails_is_a_value() -> None:
    entry = {"error": {"code": "truncated", "message": "cut off"}}
    with serving(reply(200, {"model": "m1", "predictions": [entry]})) as server, server.client() as client:
        assert client.predict(b"image") == Problem("truncated", "cut off")


def test_files_and_arrays(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    (tmp_path / "a.jpg").write_bytes(b"bytes of a file")
    (tmp_path / "empty.jpg").touch()
    with serving(right) as server, server.client() as client:
        assert client.predict(pixels) == ANSWER
        assert client.predict(tmp_path / "a.jpg") == ANSWER
        assert client.predict(str(tmp_path / "a.jpg")) == ANSWER
        nothing = [b"", tmp_path / "empty.jpg", tmp_path / "gone.jpg", np.zeros((20, 30, 3), np.float32)]
        problems = [client.predict(image) for image in nothing]  # type: ignore[arg-type]
    found = decode(server.asked[0].body)
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, pixels)
    assert [asked.body for asked in server.asked[1:]] == [b"bytes of a file"] * 2
    codes = [problem.code for problem in problems if isinstance(problem, Problem)]
    assert codes == ["empty", "empty", "unreadable", "bad_array"]


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"retries": -1}, {"connections": 0}])
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Client("http://127.0.0.1:1", **options)


def test_what_is_no_address_or_id() -> None:
    with pytest.raises(UserError, match="begins with http"):
        Client("127.0.0.1:8000")
    client = Client("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="request_id"):
        client.predict(b"image", request_id="a b\r\n")
    with pytest.raises(ValueError, match="workers"):
        next(client.predict_many([b"image"], workers=0))
