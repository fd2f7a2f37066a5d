"""The client in a process of its own: memory, forks and Ctrl-C; the server is a fake in another process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.gates import Gate
from xray_client import AsyncXrayClient, XrayClient
from xray_client.testing import FakeServer

HERE = Path(__file__).resolve().parents[2]

SERVER = """
    import time
    from xray_client.testing import FakeServer

    with FakeServer(record_requests=False) as fake:
        print(fake.url, flush=True)
        time.sleep(600)
"""

MEMORY = """
    import gc, sys
    import numpy as np
    from pathlib import Path
    from xray_client import XrayClient

    def megabytes():
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    image = np.tile(np.arange(224, dtype=np.uint8), (224, 1))
"""


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a fake server in a process of its own."""
    with start(SERVER) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE,
        env={**os.environ, **environment},
    )


def say(code: str, *arguments: str, timeout: float = 120, **environment: str) -> list[str]:
    with start(code, *arguments, **environment) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, errors
    return output.splitlines()


@pytest.mark.parametrize("kind", [XrayClient, AsyncXrayClient])
def test_a_client_is_pickled_as_its_settings(fake: FakeServer, kind: type[XrayClient | AsyncXrayClient]) -> None:
    client = kind(fake.url, timeout=7, headers={"x-site": "ward"}, tls=None, retries=2)
    if isinstance(client, XrayClient):
        client.check()  # one that is connected, too
    again = pickle.loads(pickle.dumps(client))
    assert type(again) is kind
    assert again.settings == client.settings
    if isinstance(again, XrayClient):
        with again:
            again.check()


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_requests(server: str) -> None:
    code = """
    with XrayClient(sys.argv[1], timeout=60) as client:
        for count in (2_000, 8_000):
            for _ in client.classify_many((image for _ in range(count)), max_in_flight=8):
                pass
            print(megabytes())
    """
    early, late = map(float, say(textwrap.dedent(MEMORY) + textwrap.dedent(code), server, timeout=300))
    assert late - early < 8


def test_memory_stays_flat_over_200_clients(server: str) -> None:
    code = """
    for number in range(1, 201):
        with XrayClient(sys.argv[1], timeout=60) as client:
            client.classify(image)
        if number in (50, 200):
            print(megabytes())
    """
    early, late = map(float, say(textwrap.dedent(MEMORY) + textwrap.dedent(code), server))
    assert late - early < 8


FORK = """
    import os, sys
    import numpy as np
    from xray_client import XrayClient

    image = np.tile(np.arange(224, dtype=np.uint8), (224, 1))
    used, unused = XrayClient(sys.argv[1]), XrayClient(sys.argv[1])
    if sys.argv[2] == "after":
        used.classify(image)
    child = os.fork()
    if child == 0:
        for client in (unused, used, XrayClient(sys.argv[1])):
            try:
                print(client.classify(image).finding, flush=True)
            except RuntimeError as err:
                print(err, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(used.classify(image).finding, flush=True)
"""


def test_a_client_that_nobody_has_used_works_on_both_sides_of_a_fork(server: str) -> None:
    assert say(FORK, server, "before", timeout=60) == ["Normal"] * 4


def test_after_a_fork_a_used_grpc_says_so_and_does_not_hang(server: str) -> None:
    *child, parent = say(FORK, server, "after", GRPC_ENABLE_FORK_SUPPORT="", timeout=60)
    assert len(child) == 3
    assert all("forked from one that had used gRPC" in line for line in child)
    assert parent == "Normal"


def test_where_grpc_supports_forks_the_client_does_too(server: str) -> None:
    assert say(FORK, server, "after", GRPC_ENABLE_FORK_SUPPORT="1", timeout=60) == ["Normal"] * 4


@pytest.mark.parametrize(
    "call", ["client.classify(image)", "list(client.classify_many([image] * 50))"], ids=["one", "many"]
)
def test_ctrl_c_ends_a_call_at_once(fake: FakeServer, call: str) -> None:
    code = f"""
    import sys
    import numpy as np
    from xray_client import XrayClient

    image = np.tile(np.arange(224, dtype=np.uint8), (224, 1))
    with XrayClient(sys.argv[1], timeout=3600) as client:
        {call}
    """
    gate = Gate()
    fake.alter = gate.hold
    with start(code, fake.url) as process:
        gate.wait_for(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert gate.closed
    gate.open()
    assert errors.strip().splitlines()[-1] == "KeyboardInterrupt"
