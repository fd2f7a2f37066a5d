"""Latency of one classified radiograph, and the engine's share of it.

    make bench PART=latency                 # the local Triton on model_repository/, 500 images a way
    python -m benchmarks.latency --image radiograph.png

Three ways are timed in turn, image by image, in one run, so that a busy machine slows all of them alike: the client's
`classify` on a file, `classify` on a prepared image, and the same engine called in this process without any server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from rich.table import Table

from benchmarks.load_settings import Published
from benchmarks.timing import in_turn, noise_png
from xray_build.triton.server import TritonServer
from xray_client import XrayClient, load_radiograph
from xray_client.console import console, plain_errors

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
        encoded = image.read_bytes() if image else noise_png()
        with TritonServer(repository, port=0, metrics_port=0) as server, XrayClient(server.url) as client:
            prepared = load_radiograph(encoded, client.preprocessing)
            engine = published.sessions()[0]
            ways: dict[str, Callable[[], object]] = {
                "classify, encoded image": lambda: client.classify(encoded),
                "classify, prepared image": lambda: client.classify(prepared),
                "engine alone, in process": lambda: engine(prepared[None]),
            }
            _report(in_turn(ways, count, warm_up=_WARM_UP), count)


def _report(taken: Mapping[str, npt.NDArray[np.float64]], count: int) -> None:
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
