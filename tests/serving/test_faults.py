"""The client when a real Triton goes away, comes back, is slow, is full or reloads its model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.helpers.faults import write_mean_model
from tests.helpers.gates import wait_until
from tests.helpers.radiographs import grey, level_of
from xray_build.triton.server import TritonServer
from xray_client import (
    AsyncXrayClient,
    DeadlineExceeded,
    Failure,
    Prediction,
    QueueFull,
    ServerNotReady,
    ServerUnreachable,
    XrayClient,
)

LEVELS = [*range(256)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with two levels of priority and a queue of 8."""
    batching = "priority_levels: 2 default_priority_level: 2 default_queue_policy { max_queue_size: 8 }"
    return write_mean_model(tmp_path_factory.mktemp("faults") / "repository", batching=batching)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TritonServer]:
    with TritonServer(folder.parents[1], port=0, metrics_port=0) as server:
        yield server


@pytest.fixture
def delay(folder: Path) -> Iterator[Path]:
    """Write seconds into it, and the model takes as long for each image."""
    yield folder / "delay"
    (folder / "delay").unlink(missing_ok=True)
    (folder / "busy").unlink(missing_ok=True)


@pytest.fixture
def closed(folder: Path) -> Iterator[Path]:
    """While this file is there, the model answers nothing."""
    yield folder / "closed"
    (folder / "closed").unlink(missing_ok=True)


def test_64_threads_or_tasks_on_one_client_get_the_answers_that_they_get_one_by_one(server: TritonServer) -> None:
    images = np.random.default_rng(0).integers(0, 256, (128, 224, 224), dtype=np.uint8)
    with XrayClient(server.url, timeout=30) as client:
        alone = [client.classify(image) for image in images]
        with ThreadPoolExecutor(64) as pool:
            together = list(pool.map(client.classify, images))

    async def gather() -> list[Prediction]:
        async with AsyncXrayClient(server.url, timeout=30) as client:
            return await asyncio.gather(*(client.classify(image) for image in images[:64]))

    assert [answer.probability for answer in together] == [answer.probability for answer in alone]
    assert all(np.array_equal(a.heatmap, b.heatmap) for a, b in zip(together, alone, strict=True))
    assert [answer.probability for answer in asyncio.run(gather())] == [answer.probability for answer in alone[:64]]


def test_a_full_queue_is_waited_for_and_is_its_own_error_where_there_is_no_time(
    server: TritonServer, delay: Path
) -> None:
    with XrayClient(server.url, timeout=30) as patient, XrayClient(server.url, retries=0) as hasty:
        hasty.classify(grey(0))
        delay.write_text("0.03")
        answers = list(patient.classify_many(map(grey, range(16)), max_in_flight=16))
        assert [level_of(answer) for answer in answers] == [*range(16)]
        assert max(answer.timing.attempts for answer in answers if isinstance(answer, Prediction)) > 1
        failures = [
            a.error for a in hasty.classify_many(map(grey, range(16)), max_in_flight=16) if isinstance(a, Failure)
        ]
        assert {type(error) for error in failures} == {QueueFull}


def test_a_model_that_does_not_answer_costs_no_more_than_the_timeout(server: TritonServer, closed: Path) -> None:
    with XrayClient(server.url, timeout=0.5) as client:
        client.classify(grey(0))
        closed.touch()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0.5 s"):
            client.classify(grey(0))


def test_a_reload_under_load_fails_nothing_and_an_unloaded_model_is_not_ready(server: TritonServer) -> None:
    with XrayClient(server.url, timeout=30) as client, triton.InferenceServerClient(server.url) as control:
        wait_until(client.health)
        seen = []
        for answer in client.classify_many(map(grey, LEVELS), max_in_flight=8):
            seen.append(level_of(answer))
            if len(seen) in (60, 160):
                control.load_model("medclip")
        assert seen == LEVELS
        control.unload_model("medclip")
        wait_until(lambda: not client.health())
        with XrayClient(server.url, retries=0) as other, pytest.raises(ServerNotReady):
            other.classify(grey(0))
        # One that has had an answer waits for the model to come back.
        threading.Timer(0.5, control.load_model, ["medclip"]).start()
        assert level_of(client.classify(grey(7))) == 7


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_of_two_servers_one_goes_away_under_load_and_no_image_is_lost(
    server: TritonServer, tmp_path: Path, how: signal.Signals
) -> None:
    folder = write_mean_model(tmp_path / "repository")  # without levels of priority: then a priority says nothing
    (folder / "delay").write_text("0.02")  # so that it is at work whenever it is killed
    second = TritonServer(tmp_path / "repository", port=0, metrics_port=0)
    with second, XrayClient(f"{server.url},{second.url}", timeout=30) as client:
        assert client.health()
        answers = []
        for answer in client.classify_many(map(grey, LEVELS), max_in_flight=8, priority="stat"):
            answers.append(answer)
            if len(answers) == 80:
                os.kill(second.pid, how)
        assert [level_of(answer) for answer in answers] == LEVELS
        assert any(answer.timing.attempts > 1 for answer in answers if isinstance(answer, Prediction))


@pytest.mark.slow
def test_of_three_servers_one_is_frozen_and_one_says_nothing_and_no_image_is_lost(
    server: TritonServer, tmp_path: Path
) -> None:
    write_mean_model(tmp_path / "repository")
    some = LEVELS[::4]

    async def gather(url: str) -> list[Prediction | Failure]:
        async with AsyncXrayClient(url, timeout=6) as client:
            return [answer async for answer in client.classify_many(map(grey, some), max_in_flight=4)]

    second = TritonServer(tmp_path / "repository", port=0, metrics_port=0)
    with second, socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"127.0.0.1:{hole.getsockname()[1]},{second.url},{server.url}"
        with XrayClient(url, timeout=6) as client:
            for _ in range(3):  # so that each has had its turn
                client.classify(grey(0))
            os.kill(second.pid, signal.SIGSTOP)
            try:
                answers = list(client.classify_many(map(grey, some), max_in_flight=4))
                assert [level_of(answer) for answer in answers] == some
                assert any(answer.timing.attempts > 1 for answer in answers if isinstance(answer, Prediction))
                assert client.health()
                assert [level_of(answer) for answer in asyncio.run(gather(url))] == some
            finally:
                os.kill(second.pid, signal.SIGCONT)


def test_sigterm_answers_what_is_under_way_and_a_restart_under_load_answers_each_image_once(tmp_path: Path) -> None:
    folder = write_mean_model(tmp_path / "repository")
    first = TritonServer(tmp_path / "repository", port=0, metrics_port=0).start()
    port = int(first.url.rpartition(":")[2])
    with XrayClient(first.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        client.classify(grey(0))
        (folder / "busy").unlink()
        (folder / "closed").touch()
        under_way = pool.submit(client.classify, grey(77))
        wait_until((folder / "busy").exists)
        os.kill(first.pid, signal.SIGTERM)
        with XrayClient(first.url, retries=0) as late:
            wait_until(lambda: not late.health())
            with pytest.raises((ServerNotReady, ServerUnreachable)):
                late.check()
        (folder / "closed").unlink()
        assert level_of(under_way.result(20)) == 77
        assert under_way.result().timing.attempts == 1
        first.stop()

        second = TritonServer(tmp_path / "repository", port=port, metrics_port=0)
        third = TritonServer(tmp_path / "repository", port=port, metrics_port=0)
        with second, ThreadPoolExecutor(1) as restarting:

            def restart() -> None:
                second.stop()
                third.start()

            wait_until(client.health)
            seen, done = [], None
            for answer in client.classify_many(map(grey, LEVELS), max_in_flight=8):
                seen.append(level_of(answer))
                if len(seen) == 80:
                    done = restarting.submit(restart)
            assert seen == LEVELS
            assert done is not None
            done.result(60)
        third.kill()


def test_a_server_that_was_killed_is_unreachable_after_some_attempts(tmp_path: Path) -> None:
    folder = write_mean_model(tmp_path / "repository")
    with (
        TritonServer(tmp_path / "repository", port=0, metrics_port=0) as server,
        XrayClient(server.url, timeout=6) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.classify(grey(0))
        (folder / "busy").unlink()
        (folder / "closed").touch()
        answer = pool.submit(client.classify, grey(1))
        wait_until((folder / "busy").exists)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerUnreachable) as caught:
            answer.result(20)
        assert caught.value.attempts > 1
        assert client.health() is False
