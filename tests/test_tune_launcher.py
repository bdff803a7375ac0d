"""Ray's own launcher with our file against a moto server: what it asks of EC2, and what it makes of a refusal."""

import copy
import json
import logging
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
import yaml

from tune.nodes.fallback import Outcome, outcome

ROOT = Path(__file__).resolve().parents[1]
REGION = "us-west-2"
Config = dict[str, Any]


def filled(subnets: list[str], image: str, group: str) -> Config:
    """The committed file with its placeholders filled, as the pre-flight does."""
    text = (ROOT / "cluster.yaml").read_text()
    text = text.replace("[subnet-00000000000000000]", json.dumps(subnets)).replace("ami-00000000000000000", image)
    text = text.replace("sg-00000000000000000", group)
    config: Config = yaml.safe_load(text)
    for name, kind in config["available_node_types"].items():
        kind["node_config"]["IamInstanceProfile"] = {"Name": "head" if name == "head" else "worker"}
    return config


@dataclass
class Cloud:
    ec2: Any
    group: str
    filled: Config
    bootstrapped: Config

    @property
    def instances(self) -> list[dict[str, Any]]:
        found = self.ec2.describe_instances()["Reservations"]
        return [one for group in found for one in group["Instances"] if one["State"]["Name"] == "running"]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A region with the group, the profiles and the subnets that the file names, and a home folder for Ray's keys."""
    from moto.server import ThreadedMotoServer
    from ray.autoscaler._private.aws import utils

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            patched.delenv(name)
        settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "t", "SECRET_ACCESS_KEY": "t"}
        for name, value in (settings | {"DEFAULT_REGION": REGION}).items():
            patched.setenv(f"AWS_{name}", value)
        patched.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # moto's accounts outlive its servers
        for cache in (utils.resource_cache, utils.client_cache):  # of an earlier test's server
            cache.cache_clear()
        yield _prepared()
        urllib.request.urlopen(reset).close()
        for cache in (utils.resource_cache, utils.client_cache):
            cache.cache_clear()
    server.stop()


def _prepared() -> Cloud:
    iam, ec2 = boto3.client("iam"), boto3.client("ec2")
    for name in ("head", "worker"):
        iam.create_instance_profile(InstanceProfileName=name)
        iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    subnets = sorted(ec2.describe_subnets()["Subnets"], key=lambda subnet: str(subnet["AvailabilityZone"]))
    group = ec2.create_security_group(GroupName="eagleray", Description="ours", VpcId=subnets[0]["VpcId"])["GroupId"]
    rules = yaml.safe_load((ROOT / "cluster.yaml").read_text())["provider"]["security_group"]["IpPermissions"]
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[*rules, inside])
    image = ec2.describe_images()["Images"][0]["ImageId"]
    config = filled([subnet["SubnetId"] for subnet in subnets], image, group)
    return Cloud(ec2, group, config, bootstrapped(config))


def bootstrapped(config: Config) -> Config:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    done: Config = bootstrap_aws(config)
    return done


def provider(config: Config) -> Any:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    return AWSNodeProvider(config["provider"], config["cluster_name"])


def launch(config: Config, kind: str, role: str) -> dict[str, Any]:
    tags = {"ray-node-kind": role, "ray-node-name": f"ray-eagleray-{role}", "ray-user-node-type": kind}
    (made,) = provider(config).create_node(config["available_node_types"][kind]["node_config"], tags, 1).values()
    described: dict[str, Any] = boto3.client("ec2").describe_instances(InstanceIds=[made.id])
    instance: dict[str, Any] = described["Reservations"][0]["Instances"][0]
    return instance


def test_the_launcher_makes_nothing_of_its_own(cloud: Cloud) -> None:
    """No role of Ray's with all of EC2 and S3, no security group that is open to the world."""
    config = copy.deepcopy(cloud.bootstrapped)
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == [cloud.group]
    names = {group["GroupName"] for group in cloud.ec2.describe_security_groups()["SecurityGroups"]}
    assert names <= {"default", "eagleray"}
    rules = cloud.ec2.describe_security_groups(GroupIds=[cloud.group])["SecurityGroups"][0]["IpPermissions"]
    assert {source["CidrIp"] for rule in rules for source in rule["IpRanges"]} == {"192.0.2.1/32"}
    profiles = {
        entry["InstanceProfileName"] for entry in boto3.client("iam").list_instance_profiles()["InstanceProfiles"]
    }
    assert "ray-autoscaler-v1" not in profiles
    (key,) = cloud.ec2.describe_key_pairs()["KeyPairs"]
    assert config["auth"]["ssh_private_key"].startswith(str(Path.home()))
    assert key["KeyName"] in config["auth"]["ssh_private_key"]


def test_an_unfilled_file_is_refused_before_anything_is_launched(cloud: Cloud) -> None:
    before = cloud.instances
    with pytest.raises(AssertionError):  # "Not all subnet IDs found", and Ray prints it
        bootstrapped(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    assert cloud.instances == before


def test_a_security_group_that_is_gone_is_refused_and_none_is_made(cloud: Cloud) -> None:
    """Ray would make one that lets the whole world in to SSH if the file named it by no id."""
    config = copy.deepcopy(cloud.filled)
    for kind in config["available_node_types"].values():
        kind["node_config"]["SecurityGroupIds"] = ["sg-00000000000000000"]
    config["provider"]["security_group"]["GroupName"] = "gone"
    before = cloud.ec2.describe_security_groups()["SecurityGroups"]
    with pytest.raises(AssertionError):  # "Failed to detect a security group", and Ray prints it
        bootstrapped(config)
    assert cloud.ec2.describe_security_groups()["SecurityGroups"] == before


def test_head_and_spot_worker_are_launched_as_written(cloud: Cloud) -> None:
    config = copy.deepcopy(cloud.bootstrapped)
    assert config["available_node_types"]["g5-spot"]["resources"]["GPU"] == 1
    head, worker = launch(config, "head", "head"), launch(config, "g5-spot", "worker")
    assert (head["InstanceType"], worker["InstanceType"]) == ("m6i.xlarge", "g5.xlarge")
    assert "InstanceLifecycle" not in head
    assert worker["InstanceLifecycle"] == "spot"
    for instance, profile in ((head, "head"), (worker, "worker")):
        assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
        assert {"Key": "ray-cluster-name", "Value": "eagleray"} in instance["Tags"]
        assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["eagleray"]
        asked = {"InstanceId": instance["InstanceId"], "Attribute": "instanceInitiatedShutdownBehavior"}
        said = cloud.ec2.describe_instance_attribute(**asked)["InstanceInitiatedShutdownBehavior"]
        assert said == {"Value": "terminate"}
        volume = instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
        (disk,) = cloud.ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
        assert (disk["Size"], disk["VolumeType"]) == (140, "gp3")
        assert {"Key": "ray-cluster-name", "Value": "eagleray"} in disk["Tags"]
    ours = provider(config)
    assert set(ours.non_terminated_nodes({})) == {head["InstanceId"], worker["InstanceId"]}
    ours.terminate_nodes([worker["InstanceId"]])
    assert ours.non_terminated_nodes({}) == [head["InstanceId"]]
    ours.terminate_nodes([head["InstanceId"]])


def test_a_refused_launch_is_logged_in_the_words_that_the_fallback_reads(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The autoscaler's own adapter and node provider, and an EC2 that has no capacity; then one that has."""
    from ray.autoscaler.v2.instance_manager import node_provider
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    config = copy.deepcopy(cloud.bootstrapped)
    config.pop("head_node")  # as Ray does before the file goes to the head
    reader = type("Reader", (), {"get_cached_autoscaling_config": lambda self: AutoscalingConfig(config, True)})()
    ours, zones = provider(config), []
    lines: list[str] = []
    monkeypatch.setattr(node_provider.logger, "info", lines.append)
    adapter = node_provider.NodeProviderAdapter(ours, reader)

    def refuse(**asked: Any) -> None:
        zones.append(asked["SubnetId"])
        answer: Any = {"Error": {"Code": "InsufficientInstanceCapacity", "Message": "We have no capacity."}}
        raise botocore.exceptions.ClientError(answer, "RunInstances")

    with monkeypatch.context() as patched:
        patched.setattr(ours.ec2_fail_fast, "create_instances", refuse)
        adapter._launch_nodes_by_type("g5-spot", 1, "request-1")
    adapter._launch_nodes_by_type("g4dn-on-demand", 1, "request-2")
    assert set(zones) == set(config["available_node_types"]["g5-spot"]["node_config"]["SubnetIds"])
    seen = [found for line in lines if (found := outcome(line))]
    assert seen == [Outcome("g5-spot", "InsufficientInstanceCapacity"), Outcome("g4dn-on-demand", "")]
    ours.terminate_nodes(ours.non_terminated_nodes({}))


def test_the_autoscaler_takes_the_next_type_once_the_fallback_lowered_the_first(cloud: Cloud, tmp_path: Path) -> None:
    """Ray's own scheduler over our file, before and after, down to on demand."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount  # type: ignore[attr-defined]

    from tune.nodes.fallback import Priorities

    config = copy.deepcopy(cloud.bootstrapped)
    config.pop("head_node")
    priorities, asked = Priorities(), []
    for _ in range(6):
        kinds = AutoscalingConfig(copy.deepcopy(config), True).get_node_type_configs()
        wanted = ResourceRequestByCount(request=ResourceRequestUtil.make({"CPU": 2, "GPU": 1}), count=1)
        request = SchedulingRequest(
            disable_launch_config_check=True, node_type_configs=kinds, max_num_nodes=5, resource_requests=[wanted]
        )
        (launched,) = ResourceDemandScheduler().schedule(request).to_launch
        asked.append(launched.instance_type)
        priorities.note(Outcome(launched.instance_type, "InsufficientInstanceCapacity"))
        priorities.apply(config)
    assert asked == ["g6-spot", "g5-spot", "g4dn-spot", "g6-on-demand", "g4dn-on-demand", "g6-spot"]
    assert "g4dn-on-demand (InsufficientInstanceCapacity)" in priorities.exhausted(config)
