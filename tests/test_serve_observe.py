"""Each request has an id, a time and a place in the counts, whatever becomes of it; and a line in the log if asked."""

import asyncio
import gc
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data.images import Failure
from models.bundle import BundleInfo, read_info
from models.confidences import BINS
from models.predictor import Prediction
from serve.errors import ApiError, install_error_handlers
from serve.scopestate import note
from serve.watching.drift import ENOUGH
from serve.watching.logs import SLOW_S, Log, write_json_lines
from serve.watching.meters import LATENCY, METERS, MemorySink
from serve.watching.observe import Observed, Observer
from tests.asgicalls import Reply, call, scope_of

Numbers = dict[tuple[str, ...], float]


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def observer(sink: MemorySink) -> Iterator[Observer]:
    observer = Observer(sink)
    yield observer
    observer.close()


def counted(observer: Observer, sink: MemorySink, meter: str) -> Numbers:
    """label values -> number, of one series."""
    observer.flush()
    name = f"eagleray_serve_{meter}"
    return {
        labels: number for (found, *rest), number in sink.numbers.items() if found == name for labels in [tuple(rest)]
    }


def answering(
    status: int = 200, *, before: Callable[[Scope], None] = lambda _: None, body: tuple[bytes, ...] = (b"{}",)
) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before(scope)
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        for number, part in enumerate(body):
            await send({"type": "http.response.body", "body": part, "more_body": number + 1 < len(body)})

    return app


def asked(app: ASGIApp, method: str = "POST", target: str = "/predict", **options: Any) -> Reply:
    return asyncio.run(call(app, method, target, **options))


# --- ids


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 128, "0123456789abcdef0123456789abcdef"])
def test_a_clients_id_is_kept_where_it_is_harmless(observer: Observer, given: str) -> None:
    seen: list[str] = []
    app = Observed(answering(before=lambda scope: seen.append(scope["state"]["request_id"])), observer)
    reply = asked(app, headers=[("x-request-id", given)])
    assert reply.headers["x-request-id"] == given
    assert seen == [given]


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", 'a"b', "<b>", "å", "a:b", "{}", "a\x1b[31m"])
def test_any_other_id_is_replaced(observer: Observer, given: str) -> None:
    replies = [asked(Observed(answering(), observer), headers=[("x-request-id", given)]) for _ in range(2)]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert ids[0] != ids[1]
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in ids)


def test_an_answer_has_its_id_once_where_ray_repeats_the_clients(observer: Observer) -> None:
    app = Observed(answering(), observer, echoed=True)
    assert "x-request-id" not in asked(app, headers=[("x-request-id", "mine")]).headers
    assert len(asked(app, headers=[("x-request-id", "m i n e")]).headers["x-request-id"]) == 32


def test_an_answer_names_the_model_that_gave_it(observer: Observer) -> None:
    app = Observed(answering(before=lambda scope: note(scope, "model", "abc123")), observer)
    reply = asked(app)
    assert reply.headers["x-model-id"] == "abc123"
    assert reply.headers["content-type"] == "text/plain"
    assert "x-model-id" not in asked(Observed(answering(), observer)).headers


# --- what is counted


def small_api() -> FastAPI:
    api, router = FastAPI(), APIRouter()
    install_error_handlers(api)

    @router.post("/v1/models/{name}:predict")
    async def predict(request: Request, name: str) -> dict[str, str]:
        note(request.scope, "model", "m1")
        note(request.scope, "key", "ana")
        request.scope["state"]["images"] = "2"
        await request.body()
        return {"name": name}

    @router.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError("a secret of the server")

    @router.get("/refuses")
    async def refuses() -> None:
        raise ApiError(503, "not_ready", "try again in a few seconds")

    @router.post("/reads")
    async def reads(request: Request) -> None:
        await request.body()

    api.include_router(router)
    return api


def test_requests_are_counted_by_the_route_that_took_them(observer: Observer, sink: MemorySink) -> None:
    app = Observed(small_api(), observer)
    for name in ("a", "b", "c" * 500):
        assert asked(app, target=f"/v1/models/{name}:predict", body=b"12345").status == 200
    for method, target in (("GET", "/v1/models/a:predict"), ("GET", "/nothing/here"), ("BREW", "/fails")):
        asked(app, method, target)
    assert asked(app, "GET", "/refuses").status == 503
    template = "/v1/models/{name}:predict"
    assert counted(observer, sink, "requests") == {
        ("m1", template, "200", "POST"): 3,
        ("", template, "405", "GET"): 1,
        ("", "other", "404", "GET"): 1,
        ("", "/fails", "405", "other"): 1,
        ("", "/refuses", "503", "GET"): 1,
    }
    assert counted(observer, sink, "key_requests")["ana", "200"] == 3
    assert counted(observer, sink, "received_bytes") == {(template,): 15}
    assert counted(observer, sink, "latency_seconds_count")[template, "m1", "2xx"] == 3


def test_every_byte_of_a_body_is_counted_also_without_an_announced_length(observer: Observer, sink: MemorySink) -> None:
    chunks = [b"x" * 1000, b"", b"y" * 24]

    async def receive() -> Message:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    asked(Observed(answering(), observer), receive=receive)
    assert counted(observer, sink, "received_bytes") == {("other",): 1024}


def test_an_unexpected_exception_is_a_500_under_the_requests_id(
    observer: Observer, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    reply = asked(Observed(small_api(), observer), "GET", "/fails", headers=[("x-request-id", "find-me")])
    assert (reply.status, reply.code) == (500, "internal")
    assert b"find-me" in reply.body
    assert b"secret" not in reply.body
    assert "find-me" in caplog.text
    assert counted(observer, sink, "requests") == {("", "/fails", "500", "GET"): 1}


def broken(error: BaseException, *, after: tuple[Message, ...] = ()) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in after:
            await send(message)
        raise error

    return app


START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def test_an_exception_of_the_layers_between_is_answered_too(
    observer: Observer, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    reply = asked(Observed(broken(KeyError("secret")), observer), headers=[("x-request-id", "find-me")])
    assert (reply.status, reply.code, reply.headers["x-request-id"]) == (500, "internal", "find-me")
    assert "secret" not in reply.body.decode()
    assert "find-me" in caplog.text
    other = asked(Observed(broken(KeyError("secret")), observer), target="/v2/models/m/infer")
    assert isinstance(json.loads(other.body)["error"], str)  # in the form of its path
    late = asked(Observed(broken(KeyError("secret"), after=(START,)), observer))
    assert (late.status, late.body) == (200, b"")  # it had begun: the server cuts the connection
    assert counted(observer, sink, "requests") == {("", "other", "500", "POST"): 3}


async def nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """An application that does not answer."""


async def vanished() -> Message:
    return {"type": "http.disconnect"}


async def deaf(_message: Message) -> None:
    raise OSError("nobody listens")


@pytest.mark.parametrize("app", [broken(ClientDisconnect()), small_api()], ids=["raised", "swallowed"])
def test_a_client_that_goes_away_is_counted_as_gone(observer: Observer, sink: MemorySink, app: ASGIApp) -> None:
    asyncio.run(Observed(app, observer)(scope_of("POST", "/reads"), vanished, deaf))
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["499"]


def test_an_answer_that_cannot_be_sent_is_counted_as_gone(
    observer: Observer, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(Observed(answering(), observer)(scope_of("POST", "/"), body_at_once, deaf))
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["499"]
    assert not caplog.text


async def body_at_once() -> Message:
    return {"type": "http.request", "body": b""}


def test_a_request_that_is_cancelled_is_counted_as_gone(observer: Observer, sink: MemorySink) -> None:
    """As Ray Serve does it when a client goes away, and when a request takes too long."""

    async def run() -> None:
        started = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            started.set()
            await asyncio.sleep(3600)

        task = asyncio.create_task(call(Observed(app, observer), "POST", "/"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["499"]


def test_an_application_that_does_not_answer_counts_as_a_500(observer: Observer, sink: MemorySink) -> None:
    asked(Observed(nothing, observer))
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["500"]


def test_a_client_that_goes_after_its_answer_has_it(observer: Observer, sink: MemorySink) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answering(body=(b"a", b"b"))(scope, receive, send)
        await receive()

    arriving: list[Message] = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return arriving.pop(0)

    assert asked(Observed(app, observer), receive=receive).body == b"ab"
    assert not arriving
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["200"]


def test_what_is_no_request_passes_by(observer: Observer, sink: MemorySink) -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(Observed(app, observer)({"type": "lifespan"}, vanished, deaf))
    assert passed == ["lifespan"]
    assert counted(observer, sink, "requests") == {}


# --- the counting


@pytest.fixture
def info(tiny_bundle: str) -> BundleInfo:
    return replace(read_info(tiny_bundle), confidences=[0] * (BINS - 1) + [500])


def prediction(label: str, probability: float) -> Prediction:
    return Prediction(label, probability, (probability,), None)


def told(observer: Observer, status: int = 200, seconds: float = 0.01, **changed: Any) -> None:
    usual: dict[str, Any] = {"route": "/predict", "method": "POST", "model": "m1", "key": "ana", "request_id": "r1"}
    observer.request(**{**usual, "received": 5, **changed}, status=status, seconds=seconds)


def test_latency_is_a_histogram_as_prometheus_reads_one(observer: Observer, sink: MemorySink) -> None:
    for seconds in (0.001, 0.0011, 0.25, 500.0):
        told(observer, seconds=seconds)
    buckets = {labels[-1]: number for labels, number in counted(observer, sink, "latency_seconds_bucket").items()}
    assert list(buckets) == [*map(repr, LATENCY.bounds), "+Inf"]
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["0.001"], buckets["0.0015"], buckets["0.2"], buckets["0.3"]) == (1, 2, 2, 3)
    assert (buckets["120.0"], buckets["+Inf"]) == (3, 4)
    assert sum(counted(observer, sink, "latency_seconds_sum").values()) == pytest.approx(500.2521)
    told(observer, seconds=0.25)
    assert counted(observer, sink, "latency_seconds_bucket")["/predict", "m1", "2xx", "0.2"] == 2
    # The buckets that are empty are there too, at as good as 0.
    assert 0 < counted(observer, sink, "latency_seconds_bucket")["/predict", "m1", "2xx", "0.001"] == 1


def test_predictions_and_failures_are_counted_by_model(observer: Observer, sink: MemorySink, info: BundleInfo) -> None:
    crab, sure = prediction("crab", 0.52), prediction("eagle ray", 1.0)
    observer.predicted(info, [crab, Failure("truncated", "cut off"), sure, crab])
    observer.predicted(replace(info, id="another"), [prediction("crab", float("nan"))])
    labels = {(info.id, "crab"): 2, (info.id, "eagle ray"): 1, ("another", "crab"): 1}
    assert counted(observer, sink, "images") == labels
    assert counted(observer, sink, "failures") == {(info.id, "truncated"): 1}
    confidence = counted(observer, sink, "confidence_bucket")
    assert (confidence[info.id, "0.55"], confidence[info.id, "0.95"], confidence[info.id, "1.0"]) == (2, 2, 3)


def test_drift_is_told_once_there_are_enough_predictions(
    observer: Observer, sink: MemorySink, info: BundleInfo
) -> None:
    observer.predicted(info, [prediction("crab", 0.4)] * (ENOUGH - 1))
    assert counted(observer, sink, "confidence_drift") == {}
    observer.predicted(info, [prediction("crab", 0.4)])
    assert counted(observer, sink, "confidence_drift") == {(info.id,): 1.0}
    assert 0 < counted(observer, sink, "confidence_drift_by_chance")[(info.id,)] < 1
    observer.predicted(info, [prediction("crab", 0.99)] * ENOUGH)
    assert counted(observer, sink, "confidence_drift") == {(info.id,): 0.5}


def test_a_bundle_without_validation_confidences_has_no_drift(
    observer: Observer, sink: MemorySink, info: BundleInfo
) -> None:
    observer.predicted(replace(info, confidences=[]), [prediction("crab", 0.4)] * ENOUGH)
    assert counted(observer, sink, "confidence_drift") == {}


def test_the_drift_of_the_last_models_only_is_kept(observer: Observer, sink: MemorySink, info: BundleInfo) -> None:
    for number in range(9):
        observer.predicted(replace(info, id=f"m{number}"), [prediction("crab", 0.4)] * ENOUGH)
    assert set(counted(observer, sink, "confidence_drift")) == {(f"m{number}",) for number in range(5, 9)}


def test_batches_and_waiting_images(sink: MemorySink) -> None:
    now = [100.0]
    observer = Observer(sink, clock=lambda: now[0])
    assert counted(observer, sink, "waiting_images") == {}
    observer.waiting(3)
    now[0] += 2
    observer.waiting(1)
    now[0] += 10
    observer.waiting(0)
    now[0] += 1000
    observer.batch(16, 0.25)
    observer.batch(2, 0.5)
    assert counted(observer, sink, "waited_seconds") == {(): 16}
    assert counted(observer, sink, "waiting_images") == {(): 0}
    assert counted(observer, sink, "network_seconds") == {(): 0.75}
    assert counted(observer, sink, "batch_images_sum") == {(): 18}
    assert counted(observer, sink, "batch_images_bucket")[("2.0",)] == 1
    observer.close()


def test_no_count_is_lost_between_threads(info: BundleInfo) -> None:
    """Counted by eight threads, handed on all the while by a ninth."""
    sink = MemorySink()
    observer = Observer(sink, every_s=0.001)

    def work(number: int) -> None:
        for turn in range(500):
            told(observer, status=(200, 429)[turn % 2], key=f"key{number}")
            observer.predicted(info, [prediction("crab", turn / 500)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    requests = counted(observer, sink, "requests")
    assert {code: number for (_, _, code, _), number in requests.items()} == {"200": 2000, "429": 2000}
    assert counted(observer, sink, "key_requests") == {
        (f"key{number}", code): 250 for number in range(8) for code in ("200", "429")
    }
    assert sum(counted(observer, sink, "latency_seconds_count").values()) == 4000
    assert counted(observer, sink, "confidence_bucket")[info.id, "+Inf"] == 4000
    observer.close()


def test_counts_are_handed_on_by_themselves_and_the_rest_at_the_end() -> None:
    handed_on = threading.Event()

    class Told(MemorySink):
        def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
            super().add(name, labels, amount)
            handed_on.set()

    sink = Told()
    observer = Observer(sink, every_s=0.001)
    told(observer)
    assert handed_on.wait(60)
    observer.close()
    told(observer)
    observer.close()
    assert sink.numbers["eagleray_serve_requests", "m1", "/predict", "200", "POST"] == 2


def of_observers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "observe"]


def test_the_thread_starts_when_it_is_needed_and_ends_with_its_observer() -> None:
    before = set(of_observers())
    observer = Observer(MemorySink(), every_s=0.001)
    assert set(of_observers()) == before
    told(observer)
    (thread,) = set(of_observers()) - before
    assert thread.daemon
    del observer
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_sink_that_fails_disturbs_nobody_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemorySink):
        def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
            raise ValueError("full")

    observer = Observer(Full(), every_s=3600)
    for _ in range(3):
        told(observer)
        observer.flush()
    observer.close()
    assert caplog.text.count("could not be handed on") == 1


def test_meters_have_names_and_labels_of_their_own() -> None:
    names = [name for meter in METERS for name in meter.series()]
    assert len(set(names)) == len(names)
    assert all(name.startswith("eagleray_serve_") for name in names)
    assert all(list(meter.bounds) == sorted(set(meter.bounds)) for meter in METERS)


# --- the log


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
