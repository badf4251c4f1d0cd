from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(scope="session")
def seaweed() -> Iterator[servers.Seaweed]:
    with servers.seaweed() as server:
        yield server


@pytest.fixture(scope="session")
def apache() -> Iterator[servers.Apache]:
    with servers.apache() as server:
        yield server
