"""`xray-client bench`: latency and throughput of this client against this server."""

from __future__ import annotations

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client import OutputRefused, XrayClient, load_radiograph
from xray_client.files import check_output, replacing

from .options import server_options

_PERCENTILES = (50, 90, 95, 99)
_WARM_UP = 10
# In the head of every picture that this command has drawn.
_DRAWN_BY = b"xray-client bench"


@dataclass(frozen=True, slots=True)
class Level:
    """Measurement with one number of concurrent callers.

    Attributes:
        callers: Threads, each with one request at a time.
        milliseconds: Latency of each call.
        seconds: Duration of all calls together.
    """

    callers: int
    milliseconds: list[float]
    seconds: float

    @property
    def throughput(self) -> float:
        """Images per second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, percent: int) -> float:
        """Return a percentile of the latency, milliseconds."""
        return float(np.percentile(self.milliseconds, percent))

    def to_dict(self) -> dict[str, float]:
        """Convert to one line of JSON."""
        row: dict[str, float] = {"callers": self.callers, "images_per_second": round(self.throughput, 2)}
        return row | {f"p{percent}_ms": round(self.percentile(percent), 3) for percent in _PERCENTILES}


@click.command(short_help="Measure latency and throughput.")
@click.argument("image", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--count",
    type=click.IntRange(10, 1_000_000),
    default=200,
    show_default=True,
    help="Calls per number of callers.",
)
@click.option("--callers", default="1,2,4,8", show_default=True, help="Numbers of concurrent callers to measure.")
@click.option(
    "--prepared", is_flag=True, help="Prepare the image once, not in each call, to measure network and server alone."
)
@click.option("--format", "form", type=click.Choice(["table", "jsonl"]), default="table", show_default=True,
              help="Output format.")  # fmt: skip
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="PNG to draw a chart into; needs matplotlib."
)
@server_options
def bench(
    client: XrayClient, image: Path | None, count: int, callers: str, prepared: bool, form: str, picture: Path | None
) -> None:
    """Measure latency percentiles and images per second with IMAGE, or with noise if there is none.

    Each caller sends its next request as soon as the last is answered. The first calls warm up and do not count.
    """
    numbers = _numbers(callers)
    if picture is not None:
        try:
            check_output(picture, inputs=[image] if image else [], ours=lambda head: _DRAWN_BY in head)
        except OutputRefused as err:
            raise click.UsageError(f"--picture {err}") from err
    if picture and find_spec("matplotlib") is None:
        raise click.UsageError("--picture needs matplotlib: pip install matplotlib")
    data = image.read_bytes() if image else _noise()
    source = load_radiograph(data, client.preprocessing) if prepared else data
    for _ in range(_WARM_UP):
        client.classify(source)
    levels = []
    if form == "table":
        click.echo(f"{'callers':>8}{'images/s':>10}" + "".join(f"{f'p{percent} ms':>10}" for percent in _PERCENTILES))
    for number in numbers:
        level = _measure(client, source, count, number)
        levels.append(level)
        if form == "jsonl":
            click.echo(json.dumps(level.to_dict()))
        else:
            times = "".join(f"{level.percentile(percent):>10.1f}" for percent in _PERCENTILES)
            click.echo(f"{number:>8}{level.throughput:>10.1f}{times}")
    if picture:
        try:
            _draw(levels, f"{client.model}, {count} calls each", picture)
        except OSError as err:
            raise click.UsageError(f"--picture {picture}: {err.strerror or err}") from err


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= 256 for number in numbers):
        raise click.UsageError("--callers must be numbers from 1 to 256, such as 1,2,4,8")
    return numbers


def _noise() -> bytes:
    """Make a grey PNG of a plausible size; its content does not change how long a call takes."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((1024, 840)).save(buffer, "PNG")
    return buffer.getvalue()


def _measure(client: XrayClient, source: bytes | npt.NDArray[np.uint8], count: int, callers: int) -> Level:
    def call(_: int) -> float:
        before = time.perf_counter()
        client.classify(source)
        return 1000 * (time.perf_counter() - before)

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        times = list(pool.map(call, range(count)))
    return Level(callers, times, time.perf_counter() - started)


def _draw(levels: list[Level], title: str, path: Path) -> None:
    """Draw latency and throughput over the number of callers; both axes start at 0."""
    from matplotlib.figure import Figure

    callers = [str(level.callers) for level in levels]
    figure = Figure(figsize=(10.4, 3.6), dpi=100, layout="constrained")
    figure.suptitle(title)
    latency, throughput = figure.subplots(1, 2)
    for percent in _PERCENTILES:
        latency.plot(callers, [level.percentile(percent) for level in levels], marker="o", label=f"p{percent}")
    latency.legend()
    throughput.plot(callers, [level.throughput for level in levels], marker="o")
    for axes, name in ((latency, "latency, ms"), (throughput, "images per second")):
        axes.set(xlabel="concurrent callers", ylabel=name, ylim=(0, None))
        axes.grid(axis="y", alpha=0.4)
    with replacing(path, durable=False) as unfinished:
        figure.savefig(unfinished, format="png", metadata={"Software": _DRAWN_BY.decode()})
