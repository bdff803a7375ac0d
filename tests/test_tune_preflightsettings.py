"""The pre-flight's flags."""

from typing import Any

import pytest

from tune.cloud.preflightsettings import Plan, PreflightConfig


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"region": "us-west-2"}, "--region changes the file; give --write too"),
        ({"ttl": "8h", "ssh_from": "x"}, "--ssh-from, --ttl changes the file"),
        ({"write": True, "ttl": "soon"}, "ttl must be a time"),
        ({"leftovers": True, "create": True}, "--leftovers only looks"),
        ({"print": True}, "give --create too"),
        ({"json": True, "create": True}, "without --create"),
        ({"write": True, "max_usd": -1.0}, "max_usd must be >= 0"),
    ],
)
def test_flags_that_do_not_go_together(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PreflightConfig(**flags)
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        Plan(batch_size=0)
