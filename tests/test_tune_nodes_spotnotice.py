"""EC2's notice is seen at the next look and obeyed until the machine is gone, however the metadata service behaves."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tune.nodes.spotnotice import NOTICE, REBALANCE, Head, Metadata, Watch, connects, deadline

NOW = 1_800_000_000.0
AT = '{"action": "terminate", "time": "2027-01-15T08:02:00Z"}'  # two minutes after NOW


class FakeService:
    """An IMDSv2 on loopback: pages, one valid token at a time, and what may go wrong."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.token, self.tokens_given, self.error = "t0", 0, 0
        self.broken = ""  # a page that alone is answered 500
        service = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, code: int, body: str = "") -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def do_PUT(self) -> None:
                service.tokens_given += 1
                assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
                self.answer(service.error or 200, service.token)

            def do_GET(self) -> None:
                if self.headers.get("X-aws-ec2-metadata-token") != service.token:
                    self.answer(401)
                elif self.path == service.broken:
                    self.answer(500)
                elif service.error or self.path not in service.pages:
                    self.answer(service.error or 404)
                else:
                    self.answer(200, service.pages[self.path])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service() -> Iterator[FakeService]:
    made = FakeService()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Lab:
    """A watch with a clock of its own and a Ray that takes what it is told, or not."""

    def __init__(self, service: FakeService) -> None:
        self.now, self.taken = NOW, True
        self.drains: list[int] = []
        self.lines: list[str] = []
        get = Metadata(service.url, timeout=0.5).get
        self.watch = Watch(get, self.drain, clock=lambda: self.now, log=self.lines.append)

    def drain(self, seconds: int) -> bool:
        self.drains.append(seconds)
        return self.taken

    def look(self, after: float = 3.0) -> None:
        self.now += after
        self.watch.look()


@pytest.fixture
def lab(service: FakeService) -> Lab:
    return Lab(service)


def test_nothing_is_done_without_a_notice(service: FakeService, lab: Lab) -> None:
    for _ in range(5):
        lab.look()
    assert (lab.drains, lab.lines, service.tokens_given) == ([], [], 1)


def test_a_notice_drains_with_the_time_that_is_left(service: FakeService, lab: Lab) -> None:
    service.pages[NOTICE] = AT
    lab.look(0)
    assert lab.drains == [115]
    assert any("takes this machine back" in line for line in lab.lines)


def test_a_standing_notice_drains_again_for_a_raylet_that_came_back(service: FakeService, lab: Lab) -> None:
    service.pages[NOTICE] = AT
    for _ in range(12):
        lab.look()
    assert lab.drains == [112, 91]
    assert sum("takes this machine back" in line for line in lab.lines) == 1


def test_a_ray_that_does_not_answer_is_asked_at_each_look(service: FakeService, lab: Lab) -> None:
    service.pages[NOTICE], lab.taken = AT, False
    lab.look()
    lab.look()
    lab.taken = True
    lab.look()
    lab.look()
    assert lab.drains == [112, 109, 106]


def test_a_second_notice_is_told_and_holds(service: FakeService, lab: Lab) -> None:
    service.pages[NOTICE] = AT
    lab.look(0)
    service.pages[NOTICE] = AT.replace("08:02:00", "08:03:00")
    lab.look(30)
    assert lab.drains == [115, 145]
    assert sum("takes this machine back" in line for line in lab.lines) == 2


def test_a_recommendation_is_only_logged(service: FakeService, lab: Lab) -> None:
    service.pages[REBALANCE] = '{"noticeTime": "2027-01-15T08:00:00Z"}'
    lab.look()
    lab.look()
    assert lab.drains == []
    assert len(lab.lines) == 1


def test_a_token_whose_time_is_over_is_fetched_anew(service: FakeService, lab: Lab) -> None:
    lab.look()
    service.token, service.pages[NOTICE] = "t1", AT
    lab.look()
    assert lab.drains == [112 - 3]
    assert service.tokens_given == 2


@pytest.mark.parametrize("trouble", [500, 503, 403])
def test_a_service_in_trouble_is_asked_again_and_told_once(service: FakeService, lab: Lab, trouble: int) -> None:
    service.error = trouble
    lab.look()
    lab.look()
    assert len(lab.lines) == 1
    service.error, service.pages[NOTICE] = 0, AT
    lab.look()
    assert len(lab.drains) == 1


@pytest.mark.parametrize(("broken", "drains"), [(REBALANCE, 1), (NOTICE, 0)])
def test_trouble_with_one_page_does_not_hide_the_other(
    service: FakeService, lab: Lab, broken: str, drains: int
) -> None:
    service.pages = {NOTICE: AT, REBALANCE: "{}"}
    service.broken = broken
    lab.look()
    lab.look()
    assert len(lab.drains) == drains
    assert sum("does not answer" in line for line in lab.lines) == 1
    assert sum("recommends" in line for line in lab.lines) == (broken != REBALANCE)


def test_a_notice_is_obeyed_before_anything_else_is_asked() -> None:
    done: list[str] = []

    def get(page: str) -> str | None:
        done.append(page)
        return AT if page == NOTICE else None

    def drain(seconds: int) -> bool:
        done.append("drained")
        return True

    Watch(get, drain, clock=lambda: NOW, log=lambda _: None).look()
    assert done == [NOTICE, "drained", REBALANCE]


def test_no_service_at_all_is_told_once(service: FakeService, lab: Lab) -> None:
    service.server.shutdown()
    service.server.server_close()
    lab.look()
    lab.look()
    assert len(lab.lines) == 1
    assert "does not answer" in lab.lines[0]


@pytest.mark.parametrize("broken", ["", "null", "[]", "{}", '{"time": 3}', '{"time": "soon"}', "<html>"])
def test_a_notice_that_cannot_be_read_leaves_the_two_minutes_that_are_promised(broken: str) -> None:
    assert deadline(broken, NOW) == NOW + 110


def test_the_time_of_a_notice_is_utc() -> None:
    assert deadline(AT, 0) == deadline(json.dumps({"time": "2027-01-15T08:02:00+00:00"}), 0) == NOW + 120


def test_a_notice_of_the_past_still_drains(service: FakeService, lab: Lab) -> None:
    service.pages[NOTICE] = AT
    lab.look(500)
    assert lab.drains == [1]


class Alone:
    """A head that is there or not, looked at every three seconds by a clock of its own."""

    def __init__(self) -> None:
        self.now, self.there, self.asked = NOW, True, 0
        self.ends: list[float] = []
        self.head = Head(self.connects, lambda: self.ends.append(self.now), clock=lambda: self.now)

    def connects(self) -> bool:
        self.asked += 1
        return self.there

    def go_on(self, minutes: float) -> None:
        for _ in range(int(minutes * 20)):
            self.now += 3
            self.head.look()


def test_a_worker_whose_head_is_there_goes_on_and_asks_seldom() -> None:
    alone = Alone()
    alone.go_on(120)
    assert alone.ends == []
    assert alone.asked == 120 * 4


def test_a_worker_ends_when_its_head_is_gone_for_a_quarter_of_an_hour() -> None:
    alone = Alone()
    alone.go_on(60)
    alone.there, gone = False, alone.now
    alone.go_on(14.9)
    assert alone.ends == []
    alone.go_on(0.5)
    assert alone.ends
    assert 900 <= alone.ends[0] - gone <= 930
    alone.go_on(1)
    assert len(alone.ends) > 3, "a shutdown that was refused is asked for again"


def test_a_head_that_came_back_meanwhile_starts_the_wait_anew() -> None:
    alone = Alone()
    for _ in range(4):
        alone.there = False
        alone.go_on(14)
        alone.there = True
        alone.go_on(0.5)
    assert alone.ends == []


def test_a_worker_that_never_reached_its_head_ends_too() -> None:
    alone = Alone()
    alone.there = False
    alone.go_on(16)
    assert alone.ends


def test_the_head_is_there_where_something_listens(service: FakeService) -> None:
    address = f"127.0.0.1:{service.server.server_port}"
    assert connects(address)
    service.server.shutdown()
    service.server.server_close()
    assert not connects(address)
