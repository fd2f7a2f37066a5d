"""Latency of one classified radiograph, and the engine's share of it.

    python -m benchmarks.latency            # make bench-latency: local Triton on model_repository/, 500 images a way

Three ways are timed in turn, image by image, in one run, so that a busy machine slows all of them alike: the client's
`classify` on a file, `classify` on a prepared image, and the same engine called in this process without any server.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.load_settings import Published
from xray_build.triton.server import TritonServer
from xray_client import XrayClient, load_radiograph
from xray_client.console import console, plain_errors, track

_WARM_UP = 30


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Model repository."
)
@click.option("--image", type=click.Path(path_type=Path), default=None, help="Radiograph to send.  [default: noise]")
@click.option("--count", type=click.IntRange(10), default=500, help="Images a way.")
def main(repository: Path, image: Path | None, count: int) -> None:
    """Time one classified radiograph against the local Triton, at concurrency 1."""
    with plain_errors():
        published = Published.find("medclip", repository)
        encoded = image.read_bytes() if image else _noise()
        with TritonServer(repository, port=0, metrics_port=0) as server, XrayClient(server.url) as client:
            prepared = load_radiograph(encoded, client.preprocessing)
            engine = published.sessions()[0]
            ways: dict[str, Callable[[], object]] = {
                "classify, encoded image": lambda: client.classify(encoded),
                "classify, prepared image": lambda: client.classify(prepared),
                "engine alone, in process": lambda: engine(prepared[None]),
            }
            _report(_time_in_turn(ways, count), count)


def _noise() -> bytes:
    """A grey PNG of a plausible size; how long a network takes does not depend on what is in the picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(buffer, "PNG")
    return buffer.getvalue()


def _time_in_turn(ways: dict[str, Callable[[], object]], count: int) -> dict[str, np.ndarray]:
    """Milliseconds of each call, (count,) for each way."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in track(range(_WARM_UP + count), "timing", total=_WARM_UP + count):
        for name, call in ways.items():
            started = time.perf_counter()
            call()
            if turn >= _WARM_UP:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: np.array(values) for name, values in taken.items()}


def _report(taken: dict[str, np.ndarray], count: int) -> None:
    engine = float(np.median(taken["engine alone, in process"]))
    table = Table(
        "", "p50 ms", "p99 ms", "engine's share of p50", title=f"one radiograph at a time, {count} calls a way"
    )
    for name, values in taken.items():
        p50, p99 = np.percentile(values, [50, 99])
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", f"{engine / p50:.0%}")
    console.print(table)


if __name__ == "__main__":
    main()
