"""The client for asyncio is the same client."""

from __future__ import annotations

import asyncio
import inspect
import io
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.client.cli.test_classify import save
from tests.helpers.gates import Gate, HangingFile
from tests.helpers.radiographs import grey, level_of
from xray_client import (
    AsyncXrayClient,
    DeadlineExceeded,
    Failure,
    ImageUnreadable,
    NotFinite,
    Prediction,
    ServerUnreachable,
    XrayClient,
)
from xray_client.testing import FakeServer


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_it_has_the_surface_of_the_other() -> None:
    for name, member in inspect.getmembers(XrayClient):
        if not name.startswith("_"):
            twin = getattr(AsyncXrayClient, name)
            if inspect.isfunction(member):
                ours, theirs = inspect.signature(twin), inspect.signature(member)
                assert list(ours.parameters) == list(theirs.parameters), name
                assert [p.default for p in ours.parameters.values()] == [p.default for p in theirs.parameters.values()]
    assert inspect.signature(AsyncXrayClient) == inspect.signature(XrayClient)


def test_it_gives_the_answers_of_the_other(fake: FakeServer, client: XrayClient, tmp_path: Path) -> None:
    path = save(tmp_path / "chest.png", 90)
    sources = [path, path.read_bytes(), io.BytesIO(path.read_bytes()), grey(90, (300, 200)), grey(7)]

    async def work() -> list[Prediction]:
        async with AsyncXrayClient(fake.url) as other:
            assert await other.health()
            assert await other.preprocessing() == client.preprocessing
            assert await other.info() == client.info()
            return [await other.classify(source, priority="stat") for source in sources]

    answers = run(work())
    sources[2] = io.BytesIO(path.read_bytes())
    for answer, source in zip(answers, sources, strict=True):
        same = client.classify(source)
        assert (answer.file, answer.probability, answer.finding) == (same.file, same.probability, same.finding)
        assert np.array_equal(answer.heatmap, same.heatmap)
    assert fake.requests[0].priority == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_many_are_answered_once_each_lazily_and_bounded(fake: FakeServer, ordered: bool) -> None:
    taken = 0

    async def images() -> AsyncIterator[np.ndarray]:
        nonlocal taken
        for level in range(40):
            taken += 1
            yield grey(level)

    async def work() -> list[int]:
        levels = []
        async with AsyncXrayClient(fake.url) as client:
            async for answer in client.classify_many(images(), max_in_flight=4, ordered=ordered):
                levels.append(level_of(answer))
                assert taken <= len(levels) + 4
        return levels

    fake.alter = lambda outputs: time.sleep(float(outputs["probability"][0, 0]) / 40)
    levels = run(work())
    assert (levels if ordered else sorted(levels)) == [*range(40)]
    assert fake.most_in_flight <= 4


def test_a_hundred_at_a_time_get_their_own_answers_and_fetch_the_preprocessing_once(fake: FakeServer) -> None:
    async def work() -> list[Prediction]:
        async with AsyncXrayClient(fake.url) as client:
            return await asyncio.gather(*(client.classify(grey(level)) for level in range(100)))

    assert [level_of(answer) for answer in run(work())] == [*range(100)]
    assert fake.calls["ModelConfig"] == 2


def test_errors_are_the_same_and_in_time(fake: FakeServer, tmp_path: Path) -> None:
    gate = Gate()

    async def work() -> None:
        async with AsyncXrayClient(fake.url, timeout=5) as client:
            with pytest.raises(ImageUnreadable, match="no such file") as unread:
                await client.classify(tmp_path / "missing.png")
            assert unread.value.file == str(tmp_path / "missing.png")
            fake.fail("UNAVAILABLE", "Socket closed", times=1)
            assert (await client.classify(grey(1))).timing.attempts == 2
            fake.alter = lambda outputs: outputs.update(novelty=np.array([[np.nan]], np.float32))
            with pytest.raises(NotFinite):
                await client.classify(grey(1))
            answers = [answer async for answer in client.classify_many([grey(1), tmp_path / "missing.png"])]
            assert [type(answer) for answer in answers] == [Failure, Failure]
            fake.alter = gate.hold
            with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
                await client.classify(grey(1), timeout=0.2)
            assert gate.closed
            gate.open()
        async with AsyncXrayClient("127.0.0.1:1") as client:
            with pytest.raises(ServerUnreachable, match="after 3 attempts"):
                await client.classify(grey(1))
            assert not await client.health()
        with socket.create_server(("127.0.0.1", 0)) as hole:
            async with AsyncXrayClient(f"127.0.0.1:{hole.getsockname()[1]}", timeout=0.4) as client:
                with pytest.raises(DeadlineExceeded):
                    await client.check()

    run(work())


def test_reading_does_not_hold_the_event_loop_up(fake: FakeServer) -> None:
    gate, buffer = Gate(), io.BytesIO()
    Image.fromarray(grey(9)).save(buffer, "PNG")

    async def work() -> int:
        async with AsyncXrayClient(fake.url, timeout=60) as client:
            reading = asyncio.create_task(client.classify(HangingFile(gate, buffer.getvalue())))
            answers = [level_of(await client.classify(grey(level))) for level in range(5)]
            assert answers == [*range(5)]
            gate.open()
            return level_of(await reading)

    assert run(work()) == 9


def test_a_file_that_hangs_fails_in_time(fake: FakeServer) -> None:
    gate = Gate()

    async def work() -> None:
        async with AsyncXrayClient(fake.url) as client:
            await client.preprocessing()
            with pytest.raises(ImageUnreadable, match=r"did not end within 0\.4 s"):
                await client.classify(HangingFile(gate), timeout=0.4)

    run(work())
    assert gate.closed
    gate.open()


def test_closed_by_another_task_ends_the_calls_under_way_and_cancelling_cancels(fake: FakeServer) -> None:
    gate = Gate()

    async def work() -> None:
        client = AsyncXrayClient(fake.url, timeout=3600)
        await client.classify(grey(1))
        fake.alter = gate.hold
        cancelled = asyncio.create_task(client.classify(grey(1)))
        waiting = asyncio.create_task(client.classify(grey(1)))
        await asyncio.to_thread(gate.wait_for, 2)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await waiting
        with pytest.raises(RuntimeError, match="closed"):
            await client.classify(grey(1))

    run(work())
    assert gate.closed
    gate.open()


def test_a_client_may_be_used_in_one_event_loop_after_the_other(fake: FakeServer) -> None:
    client = AsyncXrayClient(fake.url)
    assert [level_of(run(client.classify(grey(level)))) for level in (3, 4)] == [3, 4]


def test_a_client_may_be_used_in_several_event_loops_at_once(fake: FakeServer) -> None:
    """One client of a module, a loop in each thread, as web frameworks run them."""
    client, together = AsyncXrayClient(fake.url), threading.Barrier(3)

    async def many(level: int) -> list[int]:
        return [level_of(answer) for answer in await asyncio.gather(*[client.classify(grey(level)) for _ in range(8)])]

    def work(level: int) -> list[int]:
        together.wait(60)
        return asyncio.run(many(level))

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert list(pool.map(work, (10, 20, 30))) == [[level] * 8 for level in (10, 20, 30)]


def test_a_caller_who_stops_early_leaves_nothing_behind(fake: FakeServer) -> None:
    gate = Gate()

    async def work() -> int:
        client = AsyncXrayClient(fake.url, timeout=3600)
        answers = client.classify_many(map(grey, range(100)), max_in_flight=4)
        async for _ in answers:
            fake.alter = gate.hold
            break
        await answers.aclose()
        left = len(asyncio.all_tasks())
        await client.close()
        return left

    assert run(work()) <= 2
    gate.open()
