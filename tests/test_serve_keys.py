"""The command that adds, lists and removes keys, and the first key, which makes itself."""

import os
import sys

import pytest

from serve import keys
from serve.door.keystore import VARIABLE, Keys, first_key
from tests.keyfiles import file

__all__ = ["file"]


def test_a_first_run_makes_one_key_and_no_second(file: str) -> None:
    assert first_key(file, Keys({VARIABLE: "bob=0123456789abcdef"}).names) is None
    assert not os.path.exists(file)
    new = first_key(file)
    assert new is not None
    assert Keys.open(file, {}).named(new.key) == "first"
    assert first_key(file) is None


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["keys.py", *arguments])
    return keys.main()


def test_the_command(file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "list", "--file", file) == 0
    assert "keys.py add NAME" in capsys.readouterr().out
    assert run(monkeypatch, "add", "ana", "--file", file) == 0
    ana = capsys.readouterr()
    assert Keys.open(file, {}).named(ana.out.strip()) == "ana"  # nothing but the key: KEY=$(… add ana)
    assert ana.out.strip() not in ana.err
    assert run(monkeypatch, "add", "bob", "--aws", "--rate", "5", "--file", file) == 0
    key, key_id, secret = capsys.readouterr().out.splitlines()
    assert Keys.open(file, {}).named(key) == "bob"
    assert key_id == "aws_access_key_id = bob"
    assert secret == f"aws_secret_access_key = {Keys.open(file, {}).secret_of('bob')}"
    assert run(monkeypatch, "list", "--file", file) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["ana", "bob"]
    assert listed[1].endswith("5 requests/s  AWS")
    assert run(monkeypatch, "remove", "ana", "--file", file) == 0
    assert run(monkeypatch, "remove", "ana", "--file", file) == 2
    assert "error:" in capsys.readouterr().err
    assert Keys.open(file, {}).names == ("bob",)
