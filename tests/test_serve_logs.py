"""The log: a line of JSON for a request if asked, and nothing in it that a client sent."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve.watching.logs import SLOW_S, Log, write_json_lines
from serve.watching.meters import MemorySink
from serve.watching.observe import Observed, Observer
from tests.observing import asked, counted, observer, sink, small_api, told

__all__ = ["observer", "sink"]


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    logger = logging.getLogger("eagleray.serve")
    before = logger.handlers[:], logger.level, logger.propagate
    stream = io.StringIO()
    write_json_lines(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


Lines = Callable[[], list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("log", "wanted"),
    [("errors", [503, 500, 200]), ("all", [200, 404, 429, 503, 500, 200]), ("off", [])],
)
def test_the_log_has_the_lines_that_are_asked_for(
    observer: Observer, lines: Lines, log: Log, wanted: list[int]
) -> None:
    observer.log = log
    for status in (200, 404, 429, 503, 500):
        told(observer, status=status)
    told(observer, seconds=SLOW_S)
    assert [line["status"] for line in lines()] == wanted


def test_a_line_tells_what_became_of_a_request(observer: Observer, lines: Lines) -> None:
    observer.log = "all"
    told(observer, seconds=0.01234, images=3)
    (line,) = lines()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "message": "request",
        "request_id": "r1",
        "method": "POST",
        "route": "/predict",
        "model": "m1",
        "key": "ana",
        "bytes": 5,
        "images": 3,
        "status": 200,
        "ms": 12.3,
    }


EVIL = '\n{"level": "info"}\r\n\u2028\u2029\x85\x1b[31m\x00'


def test_nobody_can_write_a_line_of_their_own(observer: Observer, lines: Lines) -> None:
    observer.log = "all"
    told(observer, model=EVIL, key=EVIL, route=EVIL, method=EVIL, request_id=EVIL)
    logging.getLogger("eagleray.serve").warning("a message with %s in it", EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("eagleray.serve").exception("failed")
    assert [line["message"] for line in lines()][::2] == ["request", "failed"]
    assert lines()[0]["key"] == EVIL
    assert EVIL in lines()[2]["exception"]


def test_nothing_that_a_client_sends_is_in_the_log(observer: Observer, lines: Lines) -> None:
    observer.log = "all"
    app = Observed(small_api(), observer)
    headers = [("authorization", "Bearer SECRET"), ("x-request-id", "SECRET\n"), ("user-agent", "SECRET")]
    for method, target in (
        ("POST", "/v1/models/SECRET:predict?q=SECRET"),
        ("GET", "/SECRET%0a"),
        ("SECRET", "/fails"),
        ("GET", "/refuses?SECRET"),
    ):
        asked(app, method, target, headers=headers, body=b"SECRET image SECRET")
    assert [line["status"] for line in lines()] == [200, 404, 405, 503]
    assert [line.get("images") for line in lines()] == [2, None, None, None]
    assert "SECRET" not in json.dumps(lines())
    assert "SECRET" not in str(counted(observer, MemorySink(), "requests"))


def test_the_log_of_a_failure_is_one_line_with_its_id(observer: Observer, lines: Lines) -> None:
    asked(Observed(small_api(), observer), "GET", "/fails", headers=[("x-request-id", "find-me")])
    failure, request = lines()
    assert failure["message"] == "request find-me failed"
    assert "ZeroDivisionError" in failure["exception"]
    assert (request["request_id"], request["status"], request["level"]) == ("find-me", 500, "error")
