"""The log of the client tells of requests and servers, never of the patient or of credentials."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.radiographs import grey
from xray_client import AsyncXrayClient, AuthenticationFailed, DeadlineExceeded, ServerUnreachable, XrayClient
from xray_client.testing import FakeServer


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="xray_client")


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.DEBUG) -> list[str]:
    assert all(record.name.startswith("xray_client") for record in caplog.records)
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def test_a_call_without_trouble_logs_the_channel_and_no_more(
    fake: FakeServer, client: XrayClient, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        client.classify(grey(1))
    assert lines(caplog) == [f"opening a channel to {fake.url}, without TLS"]


def test_a_retry_is_logged_with_request_attempt_server_and_status(
    fake: FakeServer, client: XrayClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.classify(grey(1))
    caplog.clear()
    fake.fail("UNAVAILABLE", "Exceeds maximum queue size", times=2)
    answer = client.classify(grey(1))
    first, second = lines(caplog, logging.INFO)
    for attempt, line in enumerate((first, second), start=1):
        begin = f"request {answer.request_id}: attempt {attempt}, ModelInfer to {fake.url}, "
        assert line.startswith(begin + "failed with UNAVAILABLE (QueueFull); sent again in 0.")


def test_the_last_failure_is_logged_at_debug_since_it_is_raised(
    fake: FakeServer, client: XrayClient, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail("PERMISSION_DENIED", "no")
    with pytest.raises(AuthenticationFailed) as caught:
        client.classify(grey(1))
    assert not lines(caplog, logging.INFO)
    assert lines(caplog)[-1] == (
        f"request {caught.value.request_id}: attempt 1, ModelInfer to {fake.url}, "
        "failed with PERMISSION_DENIED (AuthenticationFailed); not sent again"
    )


def test_a_failover_a_cooldown_and_a_recovery_are_logged(fake: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    with FakeServer() as other, XrayClient(f"{fake.url},{other.url}", timeout=60) as client:
        other.fail("UNAVAILABLE", "GRPC server is shutting down", times=1)
        while not other.requests:
            client.classify(grey(1))
        logged = lines(caplog, logging.INFO)
        request = other.requests[0].request_id
        assert f"server {other.url} failed and is left out for 0.5 s" in logged
        assert f"request {request}: failover from {other.url} to {fake.url}" in logged
        while f"server {other.url} answers again" not in lines(caplog, logging.INFO):
            client.classify(grey(1))


def test_a_channel_that_is_opened_anew_is_logged(fake: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    client = AsyncXrayClient(fake.url)
    for _ in range(2):
        asyncio.run(client.check())
    opened = f"opening a channel to {fake.url}, without TLS"
    assert lines(caplog) == [opened, opened], "one for each event loop"


def test_no_path_tag_token_or_header_is_ever_logged(
    fake: FakeServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)  # of every logger
    path = tmp_path / "Mustermann_Erika_1964.png"
    Image.fromarray(grey(1)).save(path)
    secrets = {"token": lambda: "token-hush", "headers": {"x-key": "header-hush"}}
    with FakeServer() as other, XrayClient(f"{fake.url},{other.url}", timeout=60, **secrets) as client:
        client.classify(path)
        # A server that repeats what it was sent.
        words = "header-hush token-hush Erika"
        for status in ("UNAVAILABLE", "UNAUTHENTICATED", "NOT_FOUND", "INTERNAL"):
            for server in (fake, other):
                server.fail(status, words, times=1)
            list(client.classify_many([path, path, tmp_path / "missing_Erika.png"]))
        fake.stop()
        other.stop()
        with pytest.raises((ServerUnreachable, DeadlineExceeded)):
            client.classify(path, timeout=1)
    assert len(caplog.records) > 10
    everything = "\n".join(caplog.text.splitlines() + [repr(vars(record)) for record in caplog.records])
    for secret in ("hush", "Erika", "Mustermann", str(tmp_path), "Bearer"):
        assert secret not in everything


def test_a_program_that_does_not_ask_for_the_log_sees_nothing() -> None:
    code = (
        "from xray_client import XrayClient\nassert XrayClient('127.0.0.1:1,127.0.0.1:2', timeout=1).health() is False"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
