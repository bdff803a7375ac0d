"""Keys: the file, the environment, what changes while an endpoint runs, and that no key's text ever gets out."""

import hashlib
import json
import logging
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from serve import keys
from serve.door import keyfile
from serve.door.keystore import (
    LONGEST_KEY,
    LOOK_EVERY_S,
    VARIABLE,
    Keys,
    create_key,
    default_file,
    first_key,
    list_keys,
    remove_key,
)
from tests.commands import ROOT

HASH = hashlib.sha256(b"er_something").hexdigest()
SECRET = "a-secret-of-the-cloud-0123456789"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, *entries: Any, mode: int = 0o600, **more: Any) -> str:
    path.write_text(json.dumps({"version": 1, "keys": list(entries), **more}))
    path.chmod(mode)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "folder" / "keys.json")


def watched(path: str, clock: Clock) -> Keys:
    found = Keys({}, clock=clock)
    found.follow(path)
    return found


def test_a_new_key_is_known_by_its_text_and_kept_as_its_hash(file: str) -> None:
    new = create_key(file, "ana")
    assert new.key.startswith("er_")
    assert len(new.key) == 3 + 43  # 256 bits in base64
    assert Keys.open(file, {}).named(new.key) == "ana"
    assert Keys.open(file, {}).named(new.key.encode()) == "ana"
    text = Path(file).read_text()
    assert new.key not in text
    assert hashlib.sha256(new.key.encode()).hexdigest() in text
    assert new.aws_secret is None
    assert "aws_secret" not in text


def test_the_file_and_its_folder_are_their_owners_alone(file: str) -> None:
    before = os.umask(0)
    try:
        create_key(file, "ana")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(file)).st_mode) == 0o700
    os.chmod(file, 0o644)
    create_key(file, "bob")
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


def test_keys_are_added_and_removed_one_by_one(file: str) -> None:
    made = [create_key(file, name, rate=rate) for name, rate in (("ana", None), ("bob", 2.5), ("c.d_e-f", None))]
    assert [entry.name for entry in list_keys(file)] == ["ana", "bob", "c.d_e-f"]
    assert list_keys(file)[1].rate == 2.5
    assert list_keys(file)[0].created.endswith("+00:00")
    remove_key(file, "bob")
    found = Keys.open(file, {})
    assert found.names == ("ana", "c.d_e-f")
    assert [found.named(new.key) for new in made] == ["ana", None, "c.d_e-f"]
    assert sorted(os.listdir(os.path.dirname(file))) == ["keys.json", "keys.json.lock"]


def test_an_aws_key_has_a_secret_of_its_own(file: str) -> None:
    new = create_key(file, "ana", aws=True)
    found = Keys.open(file, {})
    assert new.aws_secret is not None
    assert new.aws_secret != new.key
    assert found.secret_of("ana") == new.aws_secret
    assert found.named(new.aws_secret) is None  # it signs; it is not a bearer key
    create_key(file, "bob")
    assert Keys.open(file, {}).secret_of("bob") is None
    assert found.secret_of("nobody") is None


def test_what_cannot_be_made_is_refused(file: str) -> None:
    create_key(file, "ana")
    before = Path(file).read_bytes()
    for name in ("", "a/b", "a b", "ä", "x" * 65, "a\n", "open"):
        with pytest.raises(UserError):
            create_key(file, name)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="rate"):
            create_key(file, "bob", rate=rate)
    with pytest.raises(UserError, match="already"):
        create_key(file, "ana")
    with pytest.raises(UserError, match="the keys there are: ana"):
        remove_key(file, "bob")
    with pytest.raises(UserError, match="local path"):
        create_key("s3://bucket/keys.json", "bob")
    assert Path(file).read_bytes() == before


def test_a_link_stays_a_link(file: str, tmp_path: Path) -> None:
    create_key(file, "ana")
    link = tmp_path / "link.json"
    link.symlink_to(file)
    create_key(str(link), "bob")
    assert link.is_symlink()
    assert [entry.name for entry in list_keys(file)] == ["ana", "bob"]


def test_two_commands_at_once_lose_no_key(file: str) -> None:
    script = "import sys; from serve.door.keystore import create_key\n"
    script += "for n in range(15): create_key(sys.argv[1], sys.argv[2] + str(n))"
    adders = [subprocess.Popen([sys.executable, "-c", script, file, name], cwd=ROOT) for name in "ab"]
    assert [adder.wait(60) for adder in adders] == [0, 0]
    assert {entry.name for entry in list_keys(file)} == {f"{name}{n}" for name in "ab" for n in range(15)}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("er_something", "fields"),
        ({"name": "ana"}, "fields"),
        ({"name": "ana", "sha256": HASH, "key": "er_something"}, "fields"),
        ({"name": 1, "sha256": HASH}, "name must be a text"),
        ({"name": "er something", "sha256": HASH}, "1-64"),
        ({"name": "open", "sha256": HASH}, "without a key"),
        ({"name": "ana", "sha256": "er_something"}, "64 characters"),
        ({"name": "ana", "sha256": HASH.upper()}, "64 characters"),
        ({"name": "ana", "sha256": HASH, "aws_secret": "short"}, "aws_secret"),
        ({"name": "ana", "sha256": HASH, "rate": "5"}, "rate"),
        ({"name": "ana", "sha256": HASH, "rate": True}, "rate"),
        ({"name": "ana", "sha256": HASH, "rate": 0}, "rate"),
        ({"name": "ana", "sha256": HASH, "rate": float("nan")}, "rate"),
        ({"name": "ana", "sha256": HASH, "rate": 10**400}, "rate"),
        ({"name": "ana", "sha256": HASH, "created": 5}, "created"),
    ],
)
def test_a_wrong_entry_is_named_by_its_number_and_never_shown(tmp_path: Path, entry: Any, why: str) -> None:
    path = write(tmp_path / "keys.json", {"name": "bob", "sha256": "0" * 64}, entry)
    with pytest.raises(UserError, match=f"key number 2.*{why}") as error:
        Keys.open(path, {})
    assert "er_something" not in str(error.value)
    assert "er something" not in str(error.value)
    assert HASH not in str(error.value)


def test_a_wrong_file_is_refused_without_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    same = {"name": "ana", "sha256": HASH}
    for text, why in (
        ("er_something", "not JSON"),
        ("[" * 200_000, "not JSON"),
        ('["er_something"]', "not a key file"),
        ('{"version": 1, "keys": {"er_something": 1}}', "not a key file"),
        ('{"version": 2, "keys": []}', "version"),
        ("\0" * 2**21, "larger"),
        (json.dumps({"version": 1, "keys": [same, {**same, "sha256": "0" * 64}]}), "named ana"),
        (json.dumps({"version": 1, "keys": [same, {**same, "name": "bob"}]}), "same key"),
        (json.dumps({"version": 1, "keys": [same] * 1001}), "more than 1000"),
    ):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(UserError, match=why) as error:
            Keys.open(str(path), {})
        assert "er_something" not in str(error.value)
    with pytest.raises(UserError, match="not a file"):
        Keys.open(str(tmp_path), {})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a file"):
        Keys.open(str(tmp_path / "pipe"), {})


def test_a_file_that_others_may_change_or_whose_secrets_they_may_read_is_refused(tmp_path: Path) -> None:
    hashed = {"name": "ana", "sha256": HASH}
    path = tmp_path / "keys.json"
    assert Keys.open(write(path, hashed, mode=0o644), {}).names == ("ana",)  # a hash may be read
    for mode in (0o620, 0o602):
        with pytest.raises(UserError, match="chmod 600"):
            Keys.open(write(path, hashed, mode=mode), {})
    for mode in (0o644, 0o640, 0o604):
        with pytest.raises(UserError, match="chmod 600") as error:
            Keys.open(write(path, {**hashed, "aws_secret": SECRET}, mode=mode), {})
        assert SECRET not in str(error.value)
    for mode in (0o600, 0o400):
        assert Keys.open(write(path, {**hashed, "aws_secret": SECRET}, mode=mode), {}).secret_of("ana") == SECRET
        path.chmod(0o600)  # to be written again


def test_no_file_is_no_key(file: str, caplog: pytest.LogCaptureFixture) -> None:
    assert Keys.open(file, {}).names == ()
    assert Keys.open(file, {}).named("") is None
    assert list_keys(file) == ()
    assert "nobody can call" in caplog.text


def test_the_users_own_file_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_file() == tmp_path / "eagleray" / "keys.json"
    new = create_key("", "ana")
    assert new.path == str(default_file())
    assert Keys.open("", {}).named(new.key) == "ana"


def test_the_environment_and_the_file_add_up(file: str) -> None:
    ana = create_key(file, "ana")
    environ = {VARIABLE: " bob=0123456789abcdef= , cleo=fedcba9876543210,"}
    found = Keys.open(file, environ)
    assert sorted(found.names) == ["ana", "bob", "cleo"]
    assert found.named(ana.key) == "ana"
    assert found.named("0123456789abcdef=") == "bob"
    assert found.secret_of("bob") == "0123456789abcdef="  # there it lies as it is anyway
    assert found.secret_of("ana") is None
    with pytest.raises(UserError, match="named ana"):
        Keys.open(file, {VARIABLE: "ana=0123456789abcdef"})
    with pytest.raises(UserError, match="same key"):
        Keys.open(file, {VARIABLE: f"dora={ana.key}"})


@pytest.mark.parametrize(
    "value",
    [
        "er_oh-my-own-key",
        "=er_oh-my-own-key",
        "er oh-my-own-key=x",
        "bob=er_oh",
        "bob=er_oh my own key",
        "bob=er_oh-my-own-ké",
        "bob=" + "er_oh" * 60,
        "open=er_oh-my-own-key",
        "a=er_oh-my-own-key,b=er_oh-my-own-key",
    ],
)
def test_a_wrong_variable_is_refused_without_its_contents(value: str) -> None:
    with pytest.raises(UserError, match=VARIABLE) as error:
        Keys({VARIABLE: value})
    assert "er_oh" not in str(error.value)
    assert "er oh" not in str(error.value)


def test_a_removed_key_stops_and_a_new_one_works_without_a_restart(file: str) -> None:
    ana = create_key(file, "ana")
    clock = Clock()
    found = watched(file, clock)
    assert found.named(ana.key) == "ana"
    remove_key(file, "ana")
    bob = create_key(file, "bob", rate=3)
    clock.now += LOOK_EVERY_S - 0.1
    assert found.named(ana.key) == "ana"  # the file is not looked at for each request
    clock.now += 0.2
    assert found.named(ana.key) is None
    assert found.named(bob.key) == "bob"
    assert found.rate_of("bob") == 3
    assert found.rate_of("ana") is None


def test_a_file_that_turns_bad_keeps_the_keys_and_warns_once(file: str, caplog: pytest.LogCaptureFixture) -> None:
    ana = create_key(file, "ana")
    clock = Clock()
    found = watched(file, clock)
    Path(file).write_text(ana.key)
    with caplog.at_level(logging.DEBUG):
        for _ in range(5):
            clock.now += 3
            assert found.named(ana.key) == "ana"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stay in force" in caplog.text
    assert ana.key not in caplog.text
    Path(file).unlink()
    bob = create_key(file, "bob")
    clock.now += 3
    assert (found.named(ana.key), found.named(bob.key)) == (None, "bob")


def test_a_file_that_is_deleted_takes_its_keys_along(file: str, caplog: pytest.LogCaptureFixture) -> None:
    ana = create_key(file, "ana")
    clock = Clock()
    found = Keys({VARIABLE: "bob=0123456789abcdef"}, clock=clock)
    found.follow(file)
    os.unlink(file)
    clock.now += 3
    assert found.named(ana.key) is None
    assert found.names == ("bob",)
    assert "keys in force: bob" in caplog.text


def test_a_mode_that_gives_secrets_away_is_noticed_while_running(file: str, caplog: pytest.LogCaptureFixture) -> None:
    create_key(file, "ana", aws=True)
    clock = Clock()
    found = watched(file, clock)
    os.chmod(file, 0o644)
    clock.now += 3
    assert found.names == ("ana",)
    assert "chmod 600" in caplog.text


def test_another_file_can_be_followed(file: str, tmp_path: Path) -> None:
    ana, bob = create_key(file, "ana"), create_key(str(tmp_path / "other.json"), "bob")
    found = Keys({})
    assert found.named(ana.key) is None
    found.follow(file)
    found.follow(file)
    assert found.named(ana.key) == "ana"
    found.follow(bob.path)
    assert (found.named(ana.key), found.named(bob.key)) == (None, "bob")
    Path(file).write_text("{}")
    with pytest.raises(UserError):
        found.follow(file)
    assert found.names == ("bob",)


def test_no_text_of_a_key_is_in_what_is_shown(file: str) -> None:
    new = create_key(file, "ana", aws=True)
    found = Keys.open(file, {VARIABLE: "bob=0123456789abcdef"})
    assert new.aws_secret is not None
    entries = list_keys(file)
    digests = [entry.sha256.hex() for entry in entries] + [str(entry.sha256) for entry in entries]
    shown = " ".join(map(repr, [new, found, *entries, found._known]))
    assert "ana" in shown
    for text in (new.key, new.aws_secret, "0123456789abcdef", *digests):
        assert text not in shown
    with pytest.raises(TypeError, match="not sent"):
        pickle.dumps(found)


def test_every_key_is_compared_and_long_ones_are_not_even_hashed(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [create_key(file, name) for name in "abc"]
    found = Keys.open(file, {})
    compared: list[bytes] = []
    same = keyfile.hashed

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert found.named(made[0].key) == "a"
    assert compared == [same(new.key) for new in made]
    compared.clear()
    assert found.named("x" * (LONGEST_KEY + 1)) is None
    assert found.named(made[0].key + "x" * 10_000_000) is None
    assert compared == []
    assert found.named("\udce9\u20ac" * 10) is None
    assert found.named(b"\xff\x00" * 10) is None


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
