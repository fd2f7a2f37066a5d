from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.fake_triton import FakeTriton
from xray_client import XrayClient


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    """A server that makes faults on demand."""
    with FakeTriton() as server:
        yield server


@pytest.fixture
def client(fake: FakeTriton) -> Iterator[XrayClient]:
    with XrayClient(fake.url, timeout=5) as client:
        yield client
