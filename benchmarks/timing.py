"""Timing that the benchmarks share: calls in turn, engines in this process that are kept busy, an image to send."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_build.engines.runtime import Run
from xray_client.console import track


def in_turn(
    ways: Mapping[str, Callable[[], object]],
    count: int,
    *,
    warm_up: int = 0,
    primed: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, npt.NDArray[np.float64]]:
    """Time several ways of doing something in turn, so that a busy machine slows all of them alike.

    Args:
        ways: Calls by name; each takes its turn as the first of a round.
        count: Timed rounds.
        warm_up: Rounds before them.
        primed: Call each way once untimed before each timed call, where another way has just emptied the caches and
            put the threads to sleep.
        clock: Seconds, by wall or processor.

    Returns:
        Milliseconds of each call, (count,) for each way.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in track(range(warm_up + count), "timing", total=warm_up + count):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if primed:
                ways[name]()
            started = clock()
            ways[name]()
            if turn >= warm_up:
                taken[name].append(1000 * (clock() - started))
    return {name: np.array(values) for name, values in taken.items()}


def rate(instances: Sequence[Run], images: npt.NDArray[np.uint8], seconds: float, *, batch: int = 1) -> float:
    """Measure images a second of engines in this process, each called again as soon as it is done.

    Args:
        instances: Engines, each with a thread of its own that calls it.
        images: uint8 (n, 1, s, s), taken in turn.
        seconds: Length of the measurement.
        batch: Images a call.
    """
    parts = [np.resize(np.roll(images, -i, axis=0), (batch, *images.shape[1:])) for i in range(len(images))]
    until = time.perf_counter() + seconds

    def work(run: Run) -> int:
        calls = 0
        while time.perf_counter() < until:
            run(parts[calls % len(parts)])
            calls += 1
        return calls * batch

    started = time.perf_counter()
    with ThreadPoolExecutor(len(instances)) as pool:
        done = sum(pool.map(work, instances))
    return done / (time.perf_counter() - started)


def noise_png() -> bytes:
    """Grey noise of a plausible size; how long a network takes does not depend on what is in the picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(buffer, "PNG")
    return buffer.getvalue()
