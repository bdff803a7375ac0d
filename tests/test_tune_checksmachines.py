"""The checks of types, GPUs, images and disks: facts in, findings out."""

from dataclasses import replace

import pytest

from tests.cloud import IMAGE, IMAGE_NAME, spoilt
from tests.preflightfacts import MACHINES, changed, facts, file, only
from tune.cloud import checksmachines
from tune.cloud.facts import Fact, Facts, Image

__all__ = ["facts", "file"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("t3.medium", "g5.xlarge"),
        ("m6i.xlarge", "g5.xlarge"),
        ("c5.4xlarge", "g5.4xlarge"),
        ("g4ad.xlarge", "g5.xlarge"),
    ],
)
def test_the_nearest_type_with_a_gpu(facts: Facts, name: str, nearest: str) -> None:
    found = [f for f in checksmachines.gpus(changed(facts, "g6.xlarge", name)) if f.verdict == "stop"]
    assert f"; {nearest} is the nearest" in found[0].what
    assert f"InstanceType: {nearest} into g6-spot" in found[0].remedy
    assert ("that CUDA runs on" in found[0].what) == (name == "g4ad.xlarge")


def test_a_worker_may_do_without_a_gpu_if_it_says_so(facts: Facts) -> None:
    plain = changed(facts, "g6.xlarge", "m6i.xlarge")
    plain = replace(plain, file=spoilt(plain.file, "GPU: 1", "GPU: 0"))
    assert all(finding.verdict == "ok" for finding in checksmachines.gpus(plain))
    dear = changed(facts, "m6i.xlarge", "g6.xlarge")
    assert "the head is a g6.xlarge" in only(checksmachines.gpus(dear)).what


def test_machines_that_do_not_fit(facts: Facts) -> None:
    alone = {**MACHINES, "g6.xlarge": replace(MACHINES["g6.xlarge"], spot=False)}
    found = checksmachines.types(replace(facts, machines=Fact(alone)))
    assert "cannot be rented as spot" in only(found).what
    found = checksmachines.types(replace(facts, offered=Fact({**facts.offered.value, "g5.xlarge": frozenset()})))
    assert "choose another region" in only(found).remedy


@pytest.mark.parametrize(
    ("image", "level", "says"),
    [
        (Image(IMAGE_NAME, "amazon", state="pending"), "stop", "is pending"),
        (Image(IMAGE_NAME, "amazon", deprecated="2026-01-01"), "warning", "deprecated since 2026-01-01"),
        (Image("Deep Learning Base OSS Nvidia Driver (Amazon Linux 2023)", "amazon"), "stop", "lets in ec2-user"),
        (Image(IMAGE_NAME, "123456789012"), "warning", "cannot tell whether"),
        (Image(IMAGE_NAME, "amazon", architecture="arm64"), "stop", "is for arm64"),
    ],
)
def test_images(facts: Facts, image: Image, level: str, says: str) -> None:
    found = only(checksmachines.images(replace(facts, images=Fact({IMAGE: image}))))
    assert (found.verdict, says in found.what) == (level, True)
    assert found.remedy


def test_the_open_driver_does_not_know_old_gpus(facts: Facts) -> None:
    found = only(checksmachines.images(changed(facts, "g6.xlarge", "p3.2xlarge")))
    assert "does not know the GPUs of p3.2xlarge" in found.what


def test_without_an_image_rays_own_would_be_taken(facts: Facts) -> None:
    found = checksmachines.images(changed(facts, "ImageId:", "KernelId:"))
    assert "Ray's default is too old" in only(found).what


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("VolumeSize: 140", "VolumeSize: 59", "less than the image's 60"),
        ("/dev/sda1", "/dev/xvda", "not the image's root disk"),
        ("DeleteOnTermination: true", "DeleteOnTermination: false", "is billed, when the machine is gone"),
    ],
)
def test_disks(facts: Facts, old: str, new: str, says: str) -> None:
    found = list(checksmachines.disks(changed(facts, old, new)))
    assert len(found) == 6
    assert all(says in finding.what and finding.remedy for finding in found)
