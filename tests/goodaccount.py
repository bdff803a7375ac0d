"""What the tests of the whole pre-flight share: one account for a module, and a file that fits it."""

from collections.abc import Iterator

import pytest

from tests.cloud import Cloud, account, ready
from tune.cloud.clusterfile import ClusterFile


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Cloud, ClusterFile]]:
    """An account and a file that fits it; nothing in the account is changed here but its answers."""
    with pytest.MonkeyPatch.context() as patch, account(patch) as cloud:
        yield cloud, ready(cloud)


@pytest.fixture
def cloud(shared: tuple[Cloud, ClusterFile]) -> Iterator[Cloud]:
    yield shared[0]
    shared[0].mend()


@pytest.fixture
def file(shared: tuple[Cloud, ClusterFile]) -> ClusterFile:
    return shared[1]
