"""The cluster ends when its time or money is up: by EC2's own clock, through restarts, and however long it takes."""

import os
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import boto3
import pytest

from tune.nodes.bill import Ledger, Machine, Prices
from tune.nodes.timetolive import Ec2, Keeper, Limits, _ended, end_cluster, seconds

T0 = 1_800_000_000.0
HEAD = Machine("i-head", "m6i.xlarge", "on-demand", T0, T0, True)
ROWS = [
    {"instance_type": kind, "region": region, "market": market, "usd_per_hour": usd, "from": dated}
    for kind, region, market, usd, dated in (
        ("m6i.xlarge", "us-west-2", "on-demand", "0.2", "2020-01-01"),
        ("g5.xlarge", "us-west-2", "on-demand", "1.0", "2020-01-01"),
        ("g5.xlarge", "us-west-2", "spot", "0.4", "2020-01-01"),
        ("g5.xlarge", "us-west-2", "spot", "0.3", "2019-01-01"),
        ("g5.xlarge", "us-west-2", "spot", "9.9", "2999-01-01"),
        ("g6.xlarge", "us-east-1", "on-demand", "0.8", "2020-01-01"),
        ("g6.xlarge", "eu-west-1", "on-demand", "0.9", "2020-01-01"),
    )
]
PRICES = Prices(ROWS, "us-west-2", "2026-01-01")


class FakeEc2:
    """Instances that end when told to, and an API that can be away."""

    def __init__(self, *machines: Machine) -> None:
        self.alive = {one.id: one for one in machines}
        self.away = 0
        self.orders: list[list[str]] = []

    def machines(self, now: float) -> list[Machine]:
        if self.away:
            self.away -= 1
            raise ConnectionError("no route")
        return [Machine(one.id, one.instance_type, one.market, one.launched, now, True) for one in self.alive.values()]

    def terminate(self, ids: Sequence[str]) -> None:
        self.orders.append(sorted(ids))
        for one in ids:
            self.alive.pop(one, None)


def worker(number: int, launched: float = T0) -> Machine:
    return Machine(f"i-{number}", "g5.xlarge", "spot", launched, launched, True)


class Lab:
    def __init__(self, cloud: FakeEc2, folder: Path, *, ttl: float = 0.0, max_usd: float = 0.0) -> None:
        self.cloud, self.file, self.limits = cloud, folder / "state.json", Limits(ttl, max_usd)
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.restart(T0)

    def restart(self, now: float, head: str = "i-head") -> None:
        ledger = Ledger.open(self.file, head, now)
        log, warn = self.lines.append, self.warnings.append
        self.keeper = Keeper(self.cloud, ledger, self.limits, PRICES, file=self.file, log=log, warn=warn)


def test_time_is_counted_from_the_heads_launch(tmp_path: Path) -> None:
    lab = Lab(FakeEc2(HEAD), tmp_path, ttl=3600)
    assert lab.keeper.look(T0 + 3599) == ""
    assert "1 hours are over" in lab.keeper.look(T0 + 3600)


def test_a_restart_of_the_service_does_not_start_the_clock_anew(tmp_path: Path) -> None:
    lab = Lab(FakeEc2(HEAD), tmp_path, ttl=3600)
    lab.keeper.look(T0 + 10)
    lab.restart(T0 + 3000)
    lab.cloud.away = 10**9  # even when EC2 does not tell the launch again
    assert lab.keeper.look(T0 + 3590) == ""
    assert lab.keeper.look(T0 + 3601)


def test_a_new_head_begins_anew(tmp_path: Path) -> None:
    lab = Lab(FakeEc2(HEAD), tmp_path, ttl=3600)
    lab.keeper.look(T0 + 10)
    later = T0 + 9000
    lab.cloud.alive = {"i-new": Machine("i-new", "m6i.xlarge", "on-demand", later, later, True)}
    lab.restart(later + 5, "i-new")
    assert lab.keeper.look(later + 3590) == ""
    assert lab.keeper.look(later + 3600)


def test_a_damaged_state_file_is_begun_anew(tmp_path: Path) -> None:
    lab = Lab(FakeEc2(HEAD), tmp_path, ttl=3600)
    lab.file.write_text('{"head": "i-head", "sta')
    lab.restart(T0 + 3000)
    assert lab.keeper.look(T0 + 3601), "EC2 knows the launch"


def test_one_is_warned_a_quarter_of_an_hour_before_and_once(tmp_path: Path) -> None:
    lab = Lab(FakeEc2(HEAD), tmp_path, ttl=3600)
    for minute in range(60):
        lab.keeper.look(T0 + 60 * minute)
    assert len(lab.warnings) == 1
    assert "ends in 15 minutes" in lab.warnings[0]


def test_money_is_node_hours_times_prices_ended_workers_included(tmp_path: Path) -> None:
    lab = Lab(FakeEc2(HEAD, worker(1), worker(2)), tmp_path, max_usd=2.0)
    assert lab.keeper.look(T0 + 3600) == ""  # 0.2 + 0.4 + 0.4 = 1.0
    lab.cloud.terminate(["i-1", "i-2"])
    assert lab.keeper.look(T0 + 3 * 3600) == ""  # 0.6 + 0.8
    assert lab.keeper.ledger.usd(PRICES, T0 + 3 * 3600) == pytest.approx(1.4)
    lab.restart(T0 + 3 * 3600)  # EC2 has forgotten them by now; the file has not
    assert lab.keeper.ledger.usd(PRICES, T0 + 3 * 3600) == pytest.approx(1.4)
    assert "2 USD are spent" in lab.keeper.look(T0 + 6 * 3600)


def test_money_runs_on_while_ec2_does_not_answer(tmp_path: Path) -> None:
    lab = Lab(FakeEc2(HEAD, worker(1)), tmp_path, max_usd=1.2)
    lab.keeper.look(T0 + 60)
    lab.cloud.away = 10**9
    assert lab.keeper.look(T0 + 7000) == ""
    assert lab.keeper.look(T0 + 7200)
    assert len(lab.lines) == 1


def test_an_earlier_clusters_machines_are_not_this_ones(tmp_path: Path) -> None:
    lab = Lab(FakeEc2(HEAD), tmp_path, max_usd=5)
    old = Machine("i-old", "g5.xlarge", "spot", T0 - 9000, T0 - 100, False)
    lab.keeper.ledger.started = T0
    lab.keeper.ledger.note([HEAD, old])
    assert set(lab.keeper.ledger.machines) == {"i-head"}


def test_prices_are_rather_too_high_than_too_low() -> None:
    assert PRICES.of("g5.xlarge", "spot") == 0.4, "the newest row that is not of the future"
    assert PRICES.of("m6i.xlarge", "spot") == 0.2, "on demand where no spot price is dated"
    assert PRICES.of("g6.xlarge", "on-demand") == 0.9, "the dearest region"
    assert PRICES.of("p9.huge", "spot") == 1.0, "the dearest machine that is known here; future rows never"


def test_the_projects_own_table_can_be_read() -> None:
    table = Path(__file__).resolve().parents[1] / "tune" / "prices.csv"
    assert 0 < Prices.read(str(table), "us-west-2").of("g6.xlarge", "spot") < 5


class Ending:
    """The end, with a clock that only sleeping moves."""

    def __init__(self, cloud: FakeEc2) -> None:
        self.now, self.stops, self.shut = T0, 0, 0
        self.cloud = cloud
        self.after_sleep: Callable[[], object] = lambda: None

    def stop(self) -> None:
        self.stops += 1

    def shut_down(self) -> None:
        self.shut += 1

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.after_sleep()

    def run(self) -> None:
        end_cluster(
            self.cloud,
            "i-head",
            stop_launches=self.stop,
            shut_down=self.shut_down,
            clock=lambda: self.now,
            sleep=self.sleep,
            log=lambda _: None,
        )


def test_workers_end_first_and_the_head_last() -> None:
    ending = Ending(FakeEc2(HEAD, worker(1), worker(2)))
    ending.run()
    assert ending.cloud.orders == [["i-1", "i-2"], ["i-head"]]
    assert ending.stops >= 1
    assert ending.now - T0 < 60


def test_a_worker_that_is_launched_meanwhile_ends_too() -> None:
    cloud = FakeEc2(HEAD, worker(1))
    ending = Ending(cloud)
    born = iter([worker(7), worker(8)])
    ending.after_sleep = lambda: cloud.alive.update({one.id: one for one in [next(born, HEAD)]})
    ending.run()
    assert cloud.orders == [["i-1"], ["i-7"], ["i-8"], ["i-head"]]


def test_one_list_without_a_worker_is_not_believed() -> None:
    """EC2's lists lag behind its launches: a worker may show up after an empty one."""
    cloud = FakeEc2(HEAD)
    ending = Ending(cloud)
    late = iter([worker(9)])
    ending.after_sleep = lambda: cloud.alive.update({one.id: one for one in late})
    ending.run()
    assert cloud.orders == [["i-9"], ["i-head"]]
    assert 40 <= ending.now - T0 < 60


def test_the_end_is_tried_until_ec2_answers() -> None:
    ending = Ending(FakeEc2(HEAD, worker(1)))
    ending.cloud.away = 30
    ending.run()
    assert ending.cloud.orders == [["i-1"], ["i-head"]]
    assert ending.shut == 0


def test_where_ec2_never_answers_the_head_shuts_itself_down() -> None:
    ending = Ending(FakeEc2(HEAD))
    ending.cloud.away = 70
    ending.run()
    assert ending.shut > 0


@pytest.mark.parametrize(("text", "means"), [("8h", 28800), ("90m", 5400), ("1.5d", 129600), ("45s", 45), ("2", 7200)])
def test_times_are_written_as_people_do(text: str, means: float) -> None:
    assert seconds(text) == means


@pytest.mark.parametrize("text", ["", "8 hours", "-1h", "h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is no time"):
        seconds(text)


def test_the_end_is_read_from_ec2s_own_text() -> None:
    assert _ended("User initiated (2027-01-15 08:00:30 GMT)", T0, T0 + 500) == T0 + 30
    assert _ended("", T0, T0 + 500) == T0 + 500


def test_only_the_tagged_instances_end(bucket: str) -> None:
    reset = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # moto's accounts outlive its servers
    region = "us-west-2"
    ec2 = boto3.client("ec2", region_name=region)
    image = ec2.describe_images()["Images"][0]["ImageId"]

    def launch(cluster: str) -> str:
        tags = [{"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": cluster}]}]
        made = ec2.run_instances(
            ImageId=image, MinCount=1, MaxCount=1, InstanceType="m6i.xlarge", TagSpecifications=tags
        )
        return str(made["Instances"][0]["InstanceId"])

    head, one, other = launch("eagleray"), launch("eagleray"), launch("other")
    cloud = Ec2(region, "eagleray")
    assert {machine.id for machine in cloud.machines(T0)} == {head, one}
    end_cluster(
        cloud,
        head,
        stop_launches=lambda: None,
        shut_down=lambda: None,
        clock=lambda: T0,
        sleep=lambda _: None,
        log=lambda _: None,
    )
    assert not any(machine.alive for machine in cloud.machines(T0))
    assert [machine.alive for machine in Ec2(region, "other").machines(T0)] == [True]
    Ec2(region, "other").terminate([other])
