from __future__ import annotations

from collections.abc import Iterator

import pytest

from xray_client import XrayClient
from xray_client.testing import FakeServer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that makes faults on demand."""
    with FakeServer() as server:
        yield server


@pytest.fixture
def client(fake: FakeServer) -> Iterator[XrayClient]:
    with XrayClient(fake.url, timeout=5) as client:
        yield client
