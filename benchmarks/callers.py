"""Measurements through this project's own client: STAT radiographs in a flood, and two servers of which one dies."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton

from benchmarks.load_settings import Published, Setting
from benchmarks.perf_analyzer import WINDOWS, Measured, PerfAnalyzer
from xray_build.engines.runtime import Images
from xray_client import Prediction, XrayClient, contract

FLOOD = 64  # routine radiographs in flight, twice the largest batch
PAUSE_S = 0.05  # between two STAT radiographs
IN_FLIGHT = 8
TIMEOUT_S = 60
# A server with one core of its own: two of them on one machine must not share a core.
ONE_CORE = Setting("one core", {"instances": 1, "threads": 1})


def measure_urgent(analyzer: PerfAnalyzer, url: str, data: Path, images: Images, seconds: float) -> dict[str, Any]:
    """Time STAT radiographs, one by one, while perf_analyzer keeps `FLOOD` routine ones in flight.

    Args:
        analyzer: Source of the flood; a caller in this process would share Python with the one that is timed.
        url: Address of the server, host:port.
        data: Input of the flood.
        images: STAT radiographs, uint8 (n, 1, s, s).
        seconds: Length of the flood.

    Returns:
        Milliseconds of STAT and routine radiographs and of the engine's batch, by Triton's own statistics.
    """
    with XrayClient(url, timeout=TIMEOUT_S) as client, triton.InferenceServerClient(url) as asked:
        client.classify(images[0])
        with ThreadPoolExecutor(1) as pool:
            flood = pool.submit(
                analyzer.measure, url, contract.MODEL_NAME, data, concurrency=FLOOD, window_s=seconds / WINDOWS
            )
            time.sleep(min(2.0, seconds / 4))  # until it floods
            before = batches_so_far(asked)
            taken = _in_turn(client, images, flood)
            after = batches_so_far(asked)
            routine = flood.result()
    counts = {size: after[size][0] - before.get(size, (0, 0.0))[0] for size in after}
    spent = {size: after[size][1] - before.get(size, (0, 0.0))[1] for size in after}
    runs = sum(counts.values())
    return {
        "stat_ms": taken,
        "routine": asdict(routine),
        "flood": FLOOD,
        "batches": runs,
        "images_a_batch": sum(size * count for size, count in counts.items()) / runs,
        "batch_ms": sum(spent.values()) / runs,
    }


def _in_turn(client: XrayClient, images: Images, until: Future[Measured]) -> list[float]:
    """Time each STAT call in milliseconds, until the flood is over."""
    taken: list[float] = []
    sources = itertools.cycle(images)
    while not until.done():
        started = time.perf_counter()
        client.classify(next(sources), priority="stat")
        taken.append(1000 * (time.perf_counter() - started))
        time.sleep(PAUSE_S)
    return taken


def batches_so_far(asked: triton.InferenceServerClient) -> dict[int, tuple[int, float]]:
    """Count the engine's batches so far: size -> number and milliseconds in all."""
    answer = asked.get_inference_statistics(contract.MODEL_NAME, client_timeout=TIMEOUT_S)
    return {
        int(entry.batch_size): (int(entry.compute_infer.count), entry.compute_infer.ns / 1e6)
        for model in answer.model_stats
        for entry in model.batch_stats
    }


def images_so_far(url: str) -> int:
    """Count the images that the engine of a server has computed so far."""
    with triton.InferenceServerClient(url) as asked:
        return sum(size * count for size, (count, _) in batches_so_far(asked).items())


def measure_servers(model: Published, images: Images, log: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Compare one server with two, each with one core, in turn; then kill one of the two at work.

    Args:
        model: Published version to serve.
        images: uint8 (n, 1, s, s).
        log: Log file of the servers.
        rounds: Rounds of the comparison.
        seconds: Approximate time of the one server in each round.

    Returns:
        Images a second of each round, and the outcomes of the radiographs when one server was killed.
    """
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(model.served_as(ONE_CORE, log, models=[contract.MODEL_NAME])) for _ in range(2)
        )
        one = stack.enter_context(XrayClient(first.url, timeout=TIMEOUT_S))
        two = stack.enter_context(XrayClient(f"{first.url},{second.url}", timeout=TIMEOUT_S))
        count = max(16, round(seconds * _rate(one, images, 16)))
        _rate(two, images, 16)
        rates = [(_rate(one, images, count), _rate(two, images, count)) for _ in range(rounds)]
        asked = 2 * count
        answers = []
        with closing(two.classify_many(_sources(images, asked), max_in_flight=IN_FLIGHT)) as coming:
            for answer in coming:
                answers.append(answer)
                if len(answers) == count // 2:
                    second.kill()
    answered = [answer for answer in answers if isinstance(answer, Prediction)]
    return {
        "model": model.name,
        "images_a_second": {"one": [rate for rate, _ in rates], "two": [rate for _, rate in rates]},
        "killed": {
            "asked": asked,
            "answered": len(answered),
            "sent_again": sum(answer.timing.attempts > 1 for answer in answered),
        },
    }


def _sources(images: Images, count: int) -> Sequence[Images]:
    return list(itertools.islice(itertools.cycle(images), count))


def _rate(client: XrayClient, images: Images, count: int) -> float:
    """Measure images a second over `count` prepared radiographs; a failed one raises."""
    started = time.perf_counter()
    for answer in client.classify_many(_sources(images, count), max_in_flight=IN_FLIGHT):
        if not isinstance(answer, Prediction):
            raise answer.error
    return count / (time.perf_counter() - started)
