"""Keys in force: the file's and the environment's, what changes while an endpoint runs, and no key's text gets out."""

import logging
import os
import pickle
from pathlib import Path

import pytest

from data.errors import UserError
from serve.door import keyfile
from serve.door.keystore import LONGEST_KEY, LOOK_EVERY_S, VARIABLE, Keys, create_key, list_keys, remove_key
from tests.clocks import Clock
from tests.keyfiles import file

__all__ = ["file"]


def watched(path: str, clock: Clock) -> Keys:
    found = Keys({}, clock=clock)
    found.follow(path)
    return found


def test_no_file_is_no_key(file: str, caplog: pytest.LogCaptureFixture) -> None:
    assert Keys.open(file, {}).names == ()
    assert Keys.open(file, {}).named("") is None
    assert list_keys(file) == ()
    assert "nobody can call" in caplog.text


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
