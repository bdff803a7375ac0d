"""What is left of a cluster: found by its tags, priced where a price is known, and never silently empty."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cloud import IMAGE, REGION, Cloud, ready
from tune.aws import Aws
from tune.cloud.checking import preflight
from tune.cloud.leftovers import Found, find, lines, verdict
from tune.cloud.preflightsettings import PreflightConfig

TAG = [{"Key": "ray-cluster-name", "Value": "eagleray"}]


def launch(cloud: Cloud, kind: str, name: str = "eagleray", **more: Any) -> str:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": name}]}]
    made = cloud.ec2.run_instances(
        ImageId=IMAGE, InstanceType=kind, MinCount=1, MaxCount=1, TagSpecifications=tags, **more
    )
    return str(made["Instances"][0]["InstanceId"])


def kinds(found: Found) -> list[str]:
    return [thing.kind for thing in found.things if thing.bills]


def test_after_ray_down_nothing_bills(cloud: Cloud) -> None:
    ready(cloud)
    machine = launch(cloud, "m6i.xlarge")
    cloud.ec2.terminate_instances(InstanceIds=[machine])
    launch(cloud, "m6i.xlarge", name="somebody-else")
    found = find(Aws(REGION), "eagleray", cloud.bucket)
    assert found.clean
    # What is kept for the next time is shown, and counts for nothing.
    assert [thing.kind for thing in found.things] == ["security group"]
    assert verdict(found, "eagleray", REGION) == "nothing of cluster eagleray bills in us-west-2"


def hanging(machine: str, *, goes: bool) -> dict[str, Any]:
    """A volume with the cluster's tag, as EC2 shows it while its machine shuts down."""
    attached = [{"InstanceId": machine, "State": "attached", "DeleteOnTermination": goes}]
    name = "vol-goes" if goes else "vol-stays"
    return {"VolumeId": name, "Size": 140, "VolumeType": "gp3", "State": "in-use", "Attachments": attached, "Tags": TAG}


def test_disks_that_go_with_a_machine_that_is_ending_are_no_alarm(cloud: Cloud) -> None:
    """For a minute after `ray down` machines shut down and their disks hang on them."""
    ending = {"InstanceId": "i-ending", "InstanceType": "g6.xlarge", "State": {"Name": "shutting-down"}, "Tags": TAG}
    cloud.answers["ec2:DescribeInstances"] = lambda _: {"Reservations": [{"Instances": [ending]}]}
    cloud.answers["ec2:DescribeVolumes"] = lambda _: {"Volumes": [hanging("i-ending", goes=True)]}
    found = find(Aws(REGION), "eagleray")
    assert found.clean
    assert "goes with i-ending, which is ending" in "\n".join(lines(found))
    both = [hanging("i-ending", goes=True), hanging("i-ending", goes=False)]
    cloud.answers["ec2:DescribeVolumes"] = lambda _: {"Volumes": both}
    (left,) = [thing for thing in find(Aws(REGION), "eagleray").things if thing.bills]
    assert left.name.startswith("vol-stays")
    assert "delete-volume" in left.remedy


def test_everything_that_bills_is_named_with_its_price(cloud: Cloud) -> None:
    head = launch(cloud, "m6i.xlarge")
    spot = launch(cloud, "g6.xlarge", InstanceMarketOptions={"MarketType": "spot"})
    idle = launch(cloud, "g5.xlarge")
    cloud.ec2.stop_instances(InstanceIds=[idle])
    volume = [{"ResourceType": "volume", "Tags": TAG}]
    lost = cloud.ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=100, VolumeType="gp3", TagSpecifications=volume)
    snapshot = cloud.ec2.create_snapshot(VolumeId=lost["VolumeId"])["SnapshotId"]
    address = cloud.ec2.allocate_address(Domain="vpc")["AllocationId"]
    cloud.ec2.create_tags(Resources=[snapshot, address], Tags=[{"Key": "eagleray-cluster", "Value": "eagleray"}])
    found = find(Aws(REGION), "eagleray")
    by_name = {thing.name.split()[0]: thing for thing in found.things}
    assert (by_name[head].usd_per_hour, by_name[head].state) == (0.192, "running")
    assert by_name[spot].usd_per_hour == 0.8048  # no spot price is known: on demand is the most
    assert (by_name[idle].bills, by_name[idle].state) == (False, "stopped")
    assert by_name[lost["VolumeId"]].usd_per_hour == pytest.approx(100 * 0.08 / 730)
    assert "delete-volume" in by_name[lost["VolumeId"]].remedy
    assert by_name[address].usd_per_hour == 0.005
    assert by_name[snapshot].usd_per_hour == pytest.approx(100 * 0.05 / 730)
    disks = [thing for thing in found.things if thing.kind == "disk"]
    assert len(disks) == 4  # those of the machines carry no tag, and are found by what they hang on
    assert any(idle in thing.remedy for thing in disks)
    assert not found.clean
    assert verdict(found, "eagleray", REGION).startswith("8 thing(s) of cluster eagleray bill in us-west-2: 1.0")
    assert "terminate-instances --region us-west-2 --instance-ids" in "\n".join(lines(found))


def test_an_endpoint_with_the_clusters_tag(cloud: Cloud) -> None:
    sagemaker = cloud.client("sagemaker")
    role = "arn:aws:iam::123456789012:role/x"
    tags = [{"Key": "eagleray-cluster", "Value": "eagleray"}]
    sagemaker.create_model(ModelName="m", ExecutionRoleArn=role, PrimaryContainer={"Image": "1.dkr.ecr.x/y:1"})
    variant = {"VariantName": "v", "ModelName": "m", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="birds", EndpointConfigName="c", Tags=tags)
    found = find(Aws(REGION), "eagleray")
    (thing,) = [thing for thing in found.things if thing.kind == "endpoint"]
    assert thing.bills
    assert thing.name.endswith("endpoint/birds")
    assert "price not known" in "\n".join(lines(found))
    assert "and what has no known price" in verdict(found, "eagleray", REGION)


def test_a_bucket_is_kept_on_purpose_and_another_one_is_not(cloud: Cloud) -> None:
    def answer(parameters: dict[str, Any]) -> Any:
        return {
            "ResourceTagMappingList": [{"ResourceARN": f"arn:aws:s3:::{name}"} for name in ("results", "forgotten")]
        }

    cloud.answers["resourcegroupstaggingapi:GetResources"] = answer
    found = find(Aws(REGION), "eagleray", "results")
    assert {thing.name for thing in found.things} == {"arn:aws:s3:::forgotten"}
    assert kinds(found) == ["bucket"]


def test_what_may_not_be_looked_at_is_not_clean(cloud: Cloud) -> None:
    cloud.refuse("ec2:DescribeVolumes", "UnauthorizedOperation", status=403)
    found = find(Aws(REGION), "eagleray")
    assert not found.clean
    assert "could not look: no permission for ec2:DescribeVolumes" in lines(found)[-1]
    assert "1 question(s) unanswered" in verdict(found, "eagleray", REGION)


def test_a_type_without_a_known_price_bills_all_the_same(cloud: Cloud) -> None:
    launch(cloud, "p4d.24xlarge")
    found = find(Aws(REGION), "eagleray")
    assert kinds(found) == ["disk", "machine"]
    assert any(thing.usd_per_hour is None for thing in found.things)


def test_the_command(cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(ready(cloud).text)
    config = PreflightConfig(file=str(path), leftovers=True)
    assert preflight(config) == 0
    assert capsys.readouterr().out.rstrip().endswith("nothing of cluster eagleray bills in us-west-2")
    launch(cloud, "g5.xlarge")
    assert preflight(config) == 1
    assert "machine" in capsys.readouterr().out
    assert preflight(PreflightConfig(file=str(path), leftovers=True, json=True)) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["clean"]
    assert {"machine", "disk"} <= {thing["kind"] for thing in told["leftovers"]}
