"""Make, list and remove the keys of an endpoint: python serve/keys.py add NAME

The text of a key is printed once, by `add`, and kept nowhere. A running endpoint takes a change of the file within
about two seconds.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from data.commandline import run_command
from serve.door import keystore


@dataclass(frozen=True)
class Add:
    """Make a key and print it."""

    name: tyro.conf.Positional[str]
    """Who the key is for: 1-64 letters, digits, dots, dashes or underscores. Logs and metrics show it."""
    aws: bool = False
    """Also make a secret for AWS-signed requests (boto3): the access key id is NAME. The file must then hold that
    secret as it is, because nothing less can check such a signature."""
    rate: float | None = None
    """Requests a second for each replica with this key, in the place of the endpoint's own rate limit."""
    file: str = ""
    """The key file. Empty is the user's own."""


@dataclass(frozen=True)
class Remove:
    """Take a key away from whoever has it."""

    name: tyro.conf.Positional[str]
    """The key's name."""
    file: str = ""
    """The key file. Empty is the user's own."""


@dataclass(frozen=True)
class Listing:
    """Show the names of all keys."""

    file: str = ""
    """The key file. Empty is the user's own."""


@dataclass(frozen=True)
class KeysConfig:
    """What to do with the key file."""

    action: (
        Annotated[Add, tyro.conf.subcommand("add", prefix_name=False)]
        | Annotated[Remove, tyro.conf.subcommand("remove", prefix_name=False)]
        | Annotated[Listing, tyro.conf.subcommand("list", prefix_name=False)]
    )


def main() -> int:
    return run_command(KeysConfig, _change, description=__doc__)


def _change(config: KeysConfig) -> int:
    match config.action:
        case Add(name, aws, rate, file):
            _print_new(keystore.create_key(file, name, aws=aws, rate=rate))
        case Remove(name, file):
            keystore.remove_key(file, name)
            print(f"{name} is removed")
        case Listing(file):
            _print_all(file)
    return 0


def _print_new(new: keystore.NewKey) -> None:
    """The key alone goes to standard output, so that a script can take it from there."""
    print(f"the key of {new.name}, shown this once (its hash is in {new.path}):", file=sys.stderr)
    print(new.key, flush=True)
    if new.aws_secret is not None:
        print(
            f"for AWS's clients ({new.path} holds this secret as it is: keep that file to yourself):", file=sys.stderr
        )
        print(f"aws_access_key_id = {new.name}\naws_secret_access_key = {new.aws_secret}")


def _print_all(file: str) -> None:
    entries = keystore.list_keys(file)
    if not entries:
        print(f"no keys in {keystore.resolved(file)}; make one with: python serve/keys.py add NAME")
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        more = [f"{entry.rate:g} requests/s"] if entry.rate is not None else []
        more += ["AWS"] if entry.aws_secret else []
        print("  ".join([entry.name.ljust(width), entry.created or "undated", *more]))


if __name__ == "__main__":
    sys.exit(main())
