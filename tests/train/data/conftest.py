"""What the tests of downloads share: servers on this machine."""

from collections.abc import Iterator

import pytest
from support.web import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Server]:
    with serving() as server:
        yield server
