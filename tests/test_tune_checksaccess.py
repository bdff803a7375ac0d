"""The checks of the region, the key pair and the bucket: facts in, findings out."""

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.cloud import spoilt
from tests.preflightfacts import changed, facts, file, only
from tune.cloud import checksaccess
from tune.cloud.clusterfile import parse
from tune.cloud.facts import Bucket, Fact, Facts

__all__ = ["facts", "file"]


@pytest.mark.parametrize(
    ("path", "key", "state", "says"),
    [
        ("", "", "", ""),
        ("~/k.pem", "mine", "fine", ""),
        ("~/k.pem", "mine", "missing", "there is no file"),
        ("~/k.pem", "mine", "open", "chmod 600"),
        ("~/k.pem", "lost", "fine", "no key pair lost in us-west-2"),
        ("~/k.pem", "", "fine", "without KeyName in head"),
        ("", "mine", "", "KeyName without"),
    ],
)
def test_key_pairs(facts: Facts, path: str, key: str, state: Any, says: str) -> None:
    text = facts.file.text
    if path:
        text = text.replace("ssh_user: ubuntu", f"ssh_user: ubuntu\n    ssh_private_key: {path}")
    if key:
        text = re.sub(r"^( +)ImageId:", rf"\1KeyName: {key}\n\1ImageId:", text, flags=re.MULTILINE)
    given = replace(facts, file=parse("f", text), private_key=state)
    found = [f"{f.what} {f.remedy}" for f in checksaccess.key_pair(given) if f.verdict == "stop"]
    assert says in "".join(found)
    assert bool(found) == bool(says)


def test_regions_and_buckets(facts: Facts) -> None:
    found = only(checksaccess.region(replace(facts, file=spoilt(facts.file, "us-west-2", "us-west-3"))))
    assert "near: us-west-" in found.what
    afar = only(checksaccess.bucket(replace(facts, bucket=Fact(Bucket("eu-west-1")))))
    assert afar.verdict == "warning"
    assert "--write --region eu-west-1" in afar.remedy
    none = checksaccess.bucket(changed(facts, "s3://birds", "/tmp"))
    assert "no s3:// address" in only(none).what
