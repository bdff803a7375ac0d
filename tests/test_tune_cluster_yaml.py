"""The committed cluster.yaml: Ray takes it as it is, and it does not do what would be dear, open or left behind."""

import copy
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tune.nodeprices import INSTANCE_TYPE, MARKET, REGION
from tune.prices import MARKETS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)
Config = dict[str, Any]

PLACEHOLDERS = (
    "ami-00000000000000000",
    "subnet-00000000000000000",
    "sg-00000000000000000",
    "192.0.2.1/32",
    "eagleray-UNSET",
    "s3://eagleray-UNSET",
)


def nodes(config: Config) -> dict[str, Config]:
    return {name: kind["node_config"] for name, kind in config["available_node_types"].items()}


def workers(config: Config) -> dict[str, Config]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def ssh_reaches_one_address(config: Config) -> bool:
    """One rule, for port 22, from one address; and every node names the group that was made of it, since Ray lets the
    world in to one that it makes."""
    group = config["provider"].get("security_group", {})
    named = [node.get("SecurityGroupIds", []) for node in nodes(config).values()]
    if any(len(ids) != 1 or ids != named[0] for ids in named):
        return False
    rules = group.get("IpPermissions", [])
    if len(rules) != 1 or not group.get("GroupName"):
        return False
    rule = rules[0]
    sources = [*rule.get("IpRanges", ()), *rule.get("Ipv6Ranges", ())]
    ports = (rule["IpProtocol"], rule["FromPort"], rule["ToPort"])
    return ports == ("tcp", 22, 22) and [source["CidrIp"].rpartition("/")[2] for source in sources] == ["32"]


def every_node_has_its_profile(config: Config) -> bool:
    return all(node.get("IamInstanceProfile", {}).get("Name") for node in nodes(config).values())


def nothing_is_stopped(config: Config) -> bool:
    ends = [node.get("InstanceInitiatedShutdownBehavior") for node in nodes(config).values()]
    kept = config["provider"].get("cache_stopped_nodes", True)
    return kept is False and set(ends) == {"terminate"}


def every_image_is_pinned(config: Config) -> bool:
    return all(re.fullmatch(r"ami-[0-9a-f]{17}", node.get("ImageId", "")) for node in nodes(config).values())


def credentials_need_a_token(config: Config) -> bool:
    options = [node.get("MetadataOptions", {}) for node in nodes(config).values()]
    return all(one.get("HttpTokens") == "required" and one.get("HttpPutResponseHopLimit") == 1 for one in options)


def disks_are_sized_and_end_with_their_machine(config: Config) -> bool:
    disks = [disk["Ebs"] for node in nodes(config).values() for disk in node.get("BlockDeviceMappings", [{"Ebs": {}}])]
    return all(d.get("VolumeType") == "gp3" and d.get("DeleteOnTermination") and d.get("VolumeSize") for d in disks)


def the_cluster_has_a_limit(config: Config) -> bool:
    """Workers come on demand, at most so many, and go again."""
    kinds = workers(config).values()
    bounded = all(kind.get("min_workers", 0) == 0 and kind.get("max_workers", 0) > 0 for kind in kinds)
    return bounded and config.get("max_workers", 0) > 0 and 0 < config.get("idle_timeout_minutes", 0) <= 15


def nodes_know_each_other_by_a_token(config: Config) -> bool:
    starts = [c for key in ("head", "worker") for c in config[f"{key}_start_ray_commands"] if " ray start " in c]
    return len(starts) == 2 and all("RAY_AUTH_MODE=token " in command for command in starts)


def the_dashboard_is_on_loopback(config: Config) -> bool:
    return any("--dashboard-host=127.0.0.1 " in command for command in config["head_start_ray_commands"])


RULES: tuple[Callable[[Config], bool], ...] = (
    ssh_reaches_one_address,
    every_node_has_its_profile,
    nothing_is_stopped,
    every_image_is_pinned,
    credentials_need_a_token,
    disks_are_sized_and_end_with_their_machine,
    the_cluster_has_a_limit,
    nodes_know_each_other_by_a_token,
    the_dashboard_is_on_loopback,
)


def _spoil(config: Config, path: str, value: Any) -> None:
    *way, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
    at: Any = config
    for key in way:
        at = at[key]
    if value is None:
        del at[last]
    else:
        at[last] = value


SPOILED = [
    (ssh_reaches_one_address, "provider/security_group/IpPermissions/0/IpRanges/0/CidrIp", "0.0.0.0/0"),
    (ssh_reaches_one_address, "provider/security_group/IpPermissions/0/IpRanges/0/CidrIp", "192.0.0.0/8"),
    (ssh_reaches_one_address, "provider/security_group/IpPermissions/0/ToPort", 65535),
    (ssh_reaches_one_address, "provider/security_group", None),
    (ssh_reaches_one_address, "available_node_types/head/node_config/SecurityGroupIds", None),
    (ssh_reaches_one_address, "available_node_types/g5-spot/node_config/SecurityGroupIds", None),
    (ssh_reaches_one_address, "available_node_types/g5-spot/node_config/SecurityGroupIds", ["sg-1"]),
    (every_node_has_its_profile, "available_node_types/head/node_config/IamInstanceProfile", None),
    (every_node_has_its_profile, "available_node_types/g4dn-on-demand/node_config/IamInstanceProfile", None),
    (nothing_is_stopped, "provider/cache_stopped_nodes", None),
    (nothing_is_stopped, "provider/cache_stopped_nodes", True),
    (nothing_is_stopped, "available_node_types/head/node_config/InstanceInitiatedShutdownBehavior", "stop"),
    (nothing_is_stopped, "available_node_types/g6-on-demand/node_config/InstanceInitiatedShutdownBehavior", None),
    (every_image_is_pinned, "available_node_types/g5-spot/node_config/ImageId", None),
    (every_image_is_pinned, "available_node_types/g5-spot/node_config/ImageId", "latest_dlami"),
    (credentials_need_a_token, "available_node_types/g5-spot/node_config/MetadataOptions/HttpTokens", "optional"),
    (disks_are_sized_and_end_with_their_machine, "available_node_types/head/node_config/BlockDeviceMappings", None),
    (the_cluster_has_a_limit, "available_node_types/g6-spot/min_workers", 1),
    (the_cluster_has_a_limit, "max_workers", None),
    (nodes_know_each_other_by_a_token, "worker_start_ray_commands/1", "ray start --address=$RAY_HEAD_IP:6379"),
    (the_dashboard_is_on_loopback, "head_start_ray_commands/3", "ray start --head --dashboard-host=0.0.0.0 "),
]


def test_ray_takes_the_file_as_it_is_committed() -> None:
    validate_config(prepare_config(copy.deepcopy(CONFIG)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_file_keeps_the_rule(rule: Callable[[Config], bool]) -> None:
    assert rule(CONFIG)


@pytest.mark.parametrize(
    ("rule", "path", "value"), SPOILED, ids=[f"{r.__name__}-{n}" for n, (r, *_) in enumerate(SPOILED)]
)
def test_the_rule_sees_what_breaks_it(rule: Callable[[Config], bool], path: str, value: Any) -> None:
    config = yaml.safe_load(TEXT)
    _spoil(config, path, value)
    assert not rule(config)


def test_no_address_of_the_world_stands_anywhere_in_the_file() -> None:
    assert "0.0.0.0" not in TEXT
    assert "::/0" not in TEXT


def test_no_secret_and_no_account_number_is_in_it() -> None:
    assert not re.search(r"(?<!\d)\d{12}(?!\d)", TEXT)
    assert not re.search(r"AKIA|ASIA|aws_secret|arn:aws|BEGIN .*KEY", TEXT)


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_each_placeholder_is_there_to_be_filled(placeholder: str) -> None:
    assert placeholder in TEXT


def test_what_is_unfilled_reaches_nothing_and_nobody() -> None:
    """No identifier of AWS in the file is a real one."""
    assert set(re.findall(r"\b(?:ami|subnet|sg|vpc)-[0-9a-f]+", TEXT)) == set(PLACEHOLDERS[:3])


def test_the_head_is_small_on_demand_and_runs_no_trials() -> None:
    head = CONFIG["available_node_types"]["head"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    assert head["node_config"]["InstanceType"].startswith("m")


def test_spot_comes_before_on_demand_and_the_price_is_not_capped_below_it() -> None:
    kinds = workers(CONFIG)
    spot = {name: kind for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert {kind["node_config"]["InstanceType"].partition(".")[0] for kind in spot.values()} == {"g6", "g5", "g4dn"}
    assert set(spot) != set(kinds), "there is a fallback"
    assert min(kind["priority"] for kind in spot.values()) > max(
        kind["priority"] for name, kind in kinds.items() if name not in spot
    )
    assert {str(kind["node_config"]["InstanceMarketOptions"]) for kind in spot.values()} == {"{'MarketType': 'spot'}"}


def test_only_priority_decides_between_the_workers() -> None:
    """Ray compares how well a type fits before it looks at priorities, so all must fit alike."""
    kinds = workers(CONFIG).values()
    assert len({str(kind["resources"]) for kind in kinds}) == 1
    assert len({kind["priority"] for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("name", CONFIG["available_node_types"])
def test_labels_say_what_a_node_is_rented_as(name: str) -> None:
    kind = CONFIG["available_node_types"][name]
    market = "spot" if "InstanceMarketOptions" in kind["node_config"] else "on-demand"
    said = {INSTANCE_TYPE: kind["node_config"]["InstanceType"], REGION: CONFIG["provider"]["region"], MARKET: market}
    assert kind["labels"] == said
    assert market in MARKETS


def test_disks_carry_the_clusters_tag() -> None:
    for node in nodes(CONFIG).values():
        (tags,) = node["TagSpecifications"]
        expected = {"Key": "ray-cluster-name", "Value": CONFIG["cluster_name"]}
        assert tags == {"ResourceType": "volume", "Tags": [expected]}


def test_what_is_mounted_exists_and_is_little() -> None:
    """Ray reads each file of a mount at each `ray up`."""
    mounts = {there: here for there, here in CONFIG["file_mounts"].items() if here.startswith("./")}
    assert all((ROOT / here).exists() for here in mounts.values())
    assert all(there == f"/home/ubuntu/eagleray/{here[2:]}" for there, here in mounts.items())
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(pinned["tool"]["uv"]["build-backend"]["module-name"])
    files = {pinned["project"]["readme"], *pinned["project"]["license-files"], "pyproject.toml"}
    assert {here[2:] for here in mounts.values()} == packages | files


def test_the_scripts_that_it_starts_are_there_and_take_what_they_are_given() -> None:
    commands = "\n".join(c for key in ("head", "worker") for c in CONFIG[f"{key}_start_ray_commands"])
    scripts = set(re.findall(r"~/eagleray/(\S+\.(?:py|sh))", commands))
    assert scripts == {
        f"tune/nodes/{name}" for name in ("keep.sh", "timetolive.py", "fallback.py", "metrics.sh", "spotnotice.py")
    }
    assert all((ROOT / script).is_file() for script in scripts)
    assert "--ttl 12h --max-usd 30" in commands
    assert "EAGLERAY_METRICS=0 " in commands


def test_every_ray_is_started_with_what_the_endpoint_needs() -> None:
    """As `export` lines of serve/running/clusternode.py; where that fails the node is not started without them."""
    for key in ("head", "worker"):
        (start,) = [c for c in CONFIG[f"{key}_start_ray_commands"] if " ray start " in c]
        asked = 'exports=$(python -m serve.running.clusternode) && eval "$exports" && '
        assert asked in start.partition(" ray start ")[0]


@pytest.mark.parametrize("script", ["keep.sh", "metrics.sh"])
def test_shell_scripts_can_be_read_by_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "tune" / "nodes" / script)], check=True)


def test_ports_are_fixed_and_no_two_are_the_same() -> None:
    for key in ("head", "worker"):
        (start,) = [c for c in CONFIG[f"{key}_start_ray_commands"] if " ray start " in c]
        ports = [int(port) for port in re.findall(r"port=(\d+)", start)]
        assert len(set(ports)) == len(ports)
        named = {name: int(port) for name, port in re.findall(r"--([\w-]*port)=(\d+)", start)}
        low, high = named.pop("min-worker-port"), named.pop("max-worker-port")
        assert all(port < low or port > high for port in named.values())
        assert max(ports) < 60000
