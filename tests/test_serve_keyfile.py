"""The key file: keys are added and removed, and a file that is wrong or open to others is refused."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from serve.door.keystore import Keys, create_key, default_file, list_keys, remove_key
from tests.commands import ROOT
from tests.keyfiles import file

__all__ = ["file"]


HASH = hashlib.sha256(b"er_something").hexdigest()
SECRET = "a-secret-of-the-cloud-0123456789"


def write(path: Path, *entries: Any, mode: int = 0o600, **more: Any) -> str:
    path.write_text(json.dumps({"version": 1, "keys": list(entries), **more}))
    path.chmod(mode)
    return str(path)


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


def test_the_users_own_file_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_file() == tmp_path / "eagleray" / "keys.json"
    new = create_key("", "ana")
    assert new.path == str(default_file())
    assert Keys.open("", {}).named(new.key) == "ana"
