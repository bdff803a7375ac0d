"""What the tests of keys share: a key file that is not there yet."""

from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "folder" / "keys.json")
