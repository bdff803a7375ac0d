"""From a frozen dataclass to a command: its fields are the flags, their docstrings the help, its errors one line."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from data.errors import UserError

Config = TypeVar("Config")


def run_command(config_class: type[Config], job: Callable[[Config], int], *, description: str) -> int:
    """Parse the command line into `config_class`, run `job` on it, return the exit code.

    The job's own code, or 2 when it refused its input (`UserError`: one line on standard error), or 130 after Ctrl-C.
    A flag that a configuration's check refuses ends the process with 2 as well. Any other exception is ours to mend
    and keeps its traceback.
    """
    config = tyro.cli(config_class, description=description, config=(tyro.conf.OmitArgPrefixes,))
    try:
        return job(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
