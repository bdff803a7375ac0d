"""Reading cluster.yaml and filling it in place: only the values change, and a second time nothing does."""

import re
from pathlib import Path

import pytest
import yaml

from data.errors import UserError
from tests.cloud import ROOT
from tune.cloud.clusterfile import TIME_TO_LIVE, UNSET, UNSET_IMAGE, ClusterFile, parse, read, scalars
from tune.cloud.clusterfill import Filling, bucket_name, changes, filled

FILLING = Filling(
    region="eu-west-1",
    image="ami-0d1e2f3a4b5c6d7e8",
    ssh_from="203.0.113.7/32",
    subnets=("subnet-aaaa", "subnet-bbbb"),
    zones=("eu-west-1a", "eu-west-1b"),
    group="sg-0a1b2c3d",
    bucket="birds-2026",
    profiles={"head": "eagleray-eu-west-1-head", "g6-spot": "eagleray-eu-west-1-worker"},
    options={"ttl": "8h", "max-usd": "20"},
    metrics=True,
    python="3.12",
)

LEAST = """\
cluster_name: small
provider: {type: aws, region: us-west-2}
head_node_type: head
available_node_types:
    head: {node_config: {InstanceType: m6i.xlarge}}
"""


@pytest.fixture
def file() -> ClusterFile:
    return read(str(ROOT / "cluster.yaml"))


def comments(text: str) -> list[str]:
    return re.findall(r"(?:^|\s)#.*$", text, re.MULTILINE)


def test_the_committed_file_as_values(file: ClusterFile) -> None:
    assert (file.name, file.region, file.max_workers) == ("eagleray", "us-west-2", 4)
    assert file.head.name == "head"
    assert not file.head.wants_gpu
    assert file.head.max_workers == 0
    assert {kind.spot for kind in file.workers} == {True, False}
    assert all(kind.wants_gpu and 0 < kind.max_workers <= 4 for kind in file.workers)
    assert all(kind.image == UNSET_IMAGE for kind in file.types)  # through the anchor too
    assert file.ssh_from == ("192.0.2.1/32",)
    assert {each.text for each in file.unfilled} == set(UNSET)
    assert file.option(TIME_TO_LIVE, "cluster") == "eagleray"
    line = file.text.splitlines()[file.unfilled[0].line - 1]
    assert file.unfilled[0].text in line


def test_everything_is_filled_and_all_else_stays(file: ClusterFile) -> None:
    new = filled(file, FILLING)
    assert new.unfilled == ()
    assert (new.region, new.bucket, new.ssh_from) == ("eu-west-1", "birds-2026", ("203.0.113.7/32",))
    for kind in new.types:
        assert kind.image == FILLING.image
        assert kind.subnets == FILLING.subnets
        assert kind.groups == ("sg-0a1b2c3d",)
        assert kind.profile == FILLING.profiles["head" if kind.head else "g6-spot"]
        assert kind.labels["eagleray.region"] == "eu-west-1"
    assert new.option(TIME_TO_LIVE, "ttl") == "8h"
    assert new.option(TIME_TO_LIVE, "max-usd") == "20"
    assert new.option(TIME_TO_LIVE, "cluster") == "eagleray"
    assert "EAGLERAY_METRICS=1 bash" in new.text
    assert "--python 3.12" in new.text
    assert "us-west-2" not in "".join(new.texts)
    assert comments(new.text) == comments(file.text)
    assert len(new.text.splitlines()) == len(file.text.splitlines())
    before, after = yaml.safe_load(file.text), yaml.safe_load(new.text)
    assert before.keys() == after.keys()
    assert before["available_node_types"].keys() == after["available_node_types"].keys()


def test_a_second_time_changes_nothing(file: ClusterFile) -> None:
    new = filled(file, FILLING)
    assert filled(new, FILLING).text == new.text
    assert filled(file, Filling()).text == file.text
    shown = changes(file.text, new.text)
    assert any(line.startswith("-") and "192.0.2.1/32" in line for line in shown)
    assert any(line.startswith("+") and "203.0.113.7/32" in line for line in shown)
    assert changes(new.text, new.text) == []


def test_it_can_be_filled_anew(file: ClusterFile) -> None:
    new = filled(filled(file, FILLING), Filling(region="us-east-1", bucket="other", subnets=("subnet-cc",)))
    assert (new.region, new.bucket) == ("us-east-1", "other")
    assert {kind.subnets for kind in new.types} == {("subnet-cc",)}
    assert {kind.image for kind in new.types} == {FILLING.image}


def test_a_profile_of_somebodys_own_is_left_alone(file: ClusterFile) -> None:
    mine = parse(
        file.path, file.text.replace("IamInstanceProfile: {Name: eagleray-UNSET}", "IamInstanceProfile: {Name: ours}")
    )
    assert {kind.profile for kind in filled(mine, FILLING).types} == {"ours"}


def test_other_layouts_keep_their_form() -> None:
    text = (
        "# begin\r\ncluster_name: 'small'\r\nprovider:\r\n  type: aws\r\n  region: \"us-west-2\"  # here\r\n"
        "  availability_zone: us-west-2a,us-west-2b\r\nhead_node_type: head\r\navailable_node_types:\r\n"
        "  head:\r\n    node_config:\r\n      ImageId: 'ami-00000000000000000'\r\n      SubnetIds:\r\n"
        "        - subnet-00000000000000000   # one\r\n\r\n      KeyName: x\r\n"
        "setup_commands:\r\n  - |\r\n    echo s3://eagleray-UNSET/x  us-west-2 us-west-2a\r\n    true\r\n"
    )
    new = filled(parse("f", text), FILLING_WITHOUT_OPTIONS)
    assert new.text == (
        "# begin\r\ncluster_name: 'small'\r\nprovider:\r\n  type: aws\r\n  region: \"eu-west-1\"  # here\r\n"
        "  availability_zone: eu-west-1a,eu-west-1b\r\nhead_node_type: head\r\navailable_node_types:\r\n"
        "  head:\r\n    node_config:\r\n      ImageId: 'ami-0d1e2f3a4b5c6d7e8'\r\n      SubnetIds:\r\n"
        "        - subnet-aaaa\r\n        - subnet-bbbb   # one\r\n\r\n      KeyName: x\r\n"
        "setup_commands:\r\n  - |\r\n    echo s3://birds-2026/x  eu-west-1 us-west-2a\r\n    true\r\n"
    )


FILLING_WITHOUT_OPTIONS = Filling(
    region=FILLING.region, image=FILLING.image, subnets=FILLING.subnets, zones=FILLING.zones, bucket=FILLING.bucket
)


@pytest.mark.parametrize(
    ("filling", "says"),
    [
        (Filling(bucket="birds"), "no s3:// address"),
        (Filling(subnets=("subnet-a",)), "no SubnetIds"),
        (Filling(group="sg-1"), "no SecurityGroupIds"),
        (Filling(options={"ttl": "8h"}), "no command runs"),
        (Filling(metrics=True), "no EAGLERAY_METRICS=0"),
    ],
)
def test_what_has_no_place_is_said(filling: Filling, says: str) -> None:
    with pytest.raises(UserError, match=f"f: {says}"):
        filled(parse("f", LEAST), filling)


def test_two_ranges_are_not_guessed_at(file: ClusterFile) -> None:
    two = file.text.replace("{CidrIp: 192.0.2.1/32}", "{CidrIp: 192.0.2.1/32}, {CidrIp: 198.51.100.0/24}")
    with pytest.raises(UserError, match="open to 2 ranges"):
        filled(parse("f", two), FILLING)


def test_an_option_is_added_where_it_is_missing() -> None:
    text = LEAST + f"head_start_ray_commands:\n  - python ~/x/{TIME_TO_LIVE} --cluster small; ray stop\n"
    new = filled(parse("f", text), Filling(options={"ttl": "90m"}))
    assert f"{TIME_TO_LIVE} --ttl 90m --cluster small; ray stop" in new.text
    assert new.option(TIME_TO_LIVE, "ttl") == "90m"
    assert new.option(TIME_TO_LIVE, "cluster") == "small"
    assert new.option(TIME_TO_LIVE, "max-usd") == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "no YAML"),
        ("- a", "not a cluster's configuration"),
        ("cluster_name: x", "provider is missing"),
        (LEAST.replace("type: aws", "type: gcp"), "provider.type is 'gcp'"),
        (LEAST.replace(", region: us-west-2", ""), "provider.region is missing"),
        (LEAST.replace("head_node_type: head", "head_node_type: tail"), "'tail' is none of"),
        (LEAST.replace("{node_config: {InstanceType: m6i.xlarge}}", "{}"), "node type head has no node_config"),
    ],
)
def test_what_is_no_cluster_file(text: str, says: str) -> None:
    with pytest.raises(UserError, match=f"f.*{re.escape(says)}"):
        parse("f", text)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(str(tmp_path / "none.yaml"))
    (tmp_path / "latin.yaml").write_bytes("cluster_name: h\xe4".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read(str(tmp_path / "latin.yaml"))


def test_an_anchors_values_are_seen_once(file: ClusterFile) -> None:
    places = [node.start_mark.index for _, node in scalars(file.text)]
    assert len(places) == len(set(places))
    assert file.text.count(UNSET_IMAGE) == sum(node.value == UNSET_IMAGE for _, node in scalars(file.text))


def test_names_of_buckets() -> None:
    assert bucket_name("s3://birds-2026/") == "birds-2026"
    for wrong in ("ab", "Birds", "birds/x", "bi rds", "a..b", "x" * 64, ""):
        with pytest.raises(UserError, match="not a bucket's name"):
            bucket_name(wrong)
