"""`xray-client bench`: how fast this client gets answers from this server."""

from __future__ import annotations

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from xray_client._client import XrayClient
from xray_client._imaging.reader import load_radiograph

from .options import server_options

_PERCENTILES = (50, 90, 95, 99)
_WARM_UP = 10


@dataclass(frozen=True, slots=True)
class Level:
    """What was measured with so many callers at a time.

    Attributes:
        callers: Threads that each wait for an answer before they ask again.
        milliseconds: Of each call.
        seconds: Of all calls together.
    """

    callers: int
    milliseconds: list[float]
    seconds: float

    @property
    def throughput(self) -> float:
        """Images a second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, percent: int) -> float:
        """Milliseconds within which so many of a hundred calls were answered."""
        return float(np.percentile(self.milliseconds, percent))

    def to_dict(self) -> dict[str, float]:
        """One line of JSON."""
        row: dict[str, float] = {"callers": self.callers, "images_per_second": round(self.throughput, 2)}
        return row | {f"p{percent}_ms": round(self.percentile(percent), 3) for percent in _PERCENTILES}


@click.command(short_help="Latency and throughput of this client against this server.")
@click.argument("image", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--count",
    type=click.IntRange(10, 1_000_000),
    default=200,
    show_default=True,
    help="Calls for each number of callers.",
)
@click.option("--callers", default="1,2,4,8", show_default=True, help="Numbers of callers at a time.")
@click.option("--prepared", is_flag=True, help="Prepare the image once and not in each call: network and server alone.")
@click.option("--format", "form", type=click.Choice(["table", "jsonl"]), default="table", show_default=True)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw it into this PNG as well.")
@server_options
def bench(
    client: XrayClient, image: Path | None, count: int, callers: str, prepared: bool, form: str, picture: Path | None
) -> None:
    """Time calls with IMAGE (else with noise): latency by percentile and images a second, by callers at a time.

    Each caller asks again as soon as it is answered. The first calls are not counted.
    """
    numbers = _numbers(callers)
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
            draw(levels, f"{client.model}, {count} calls each").save(picture, "PNG")
        except OSError as err:
            raise click.UsageError(f"--picture {picture}: {err.strerror or err}") from err


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= 256 for number in numbers):
        raise click.UsageError("--callers wants numbers from 1 to 256, such as 1,2,4,8")
    return numbers


def _noise() -> bytes:
    """A grey PNG of a plausible size; how long a network takes does not depend on what is in the picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((1024, 840)).save(buffer, "PNG")
    return buffer.getvalue()


def _measure(client: XrayClient, source: bytes | npt.NDArray[np.uint8], count: int, callers: int) -> Level:
    left = iter(range(count))
    lock = threading.Lock()

    def work() -> list[float]:
        taken: list[float] = []
        while True:
            with lock:
                if next(left, None) is None:
                    return taken
            before = time.perf_counter()
            client.classify(source)
            taken.append(1000 * (time.perf_counter() - before))

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        working = [pool.submit(work) for _ in range(callers)]
        times = [taken for future in working for taken in future.result()]
    return Level(callers, times, time.perf_counter() - started)


_WIDTH, _HEIGHT, _MARGIN = 520, 360, 64
_COLOURS = ((68, 119, 170), (34, 136, 51), (204, 153, 0), (204, 51, 85))  # told apart by the colour-blind as well


def draw(levels: list[Level], title: str) -> Image.Image:
    """Latency on the left, throughput on the right, by callers at a time; from 0, so that lengths can be compared."""
    canvas = Image.new("RGB", (2 * _WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    pen.text((_MARGIN, 10), title, font=font, fill="black")
    latencies = [[level.percentile(percent) for level in levels] for percent in _PERCENTILES]
    for left, heading, series, names in (
        (0, "milliseconds", latencies, [f"p{percent}" for percent in _PERCENTILES]),
        (_WIDTH, "images/s", [[level.throughput for level in levels]], [""]),
    ):
        top = _nice(max(max(values) for values in series))
        _axes(pen, font, left, heading, top, [level.callers for level in levels])
        legend = _MARGIN + 110
        for values, name, colour in zip(series, names, _COLOURS, strict=False):
            points = [(_x(left, i, len(levels)), _y(value, top)) for i, value in enumerate(values)]
            pen.line(points, fill=colour, width=2)
            for x, y in points:
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
            pen.text((left + legend, 34), name, font=font, fill=colour)
            legend += 40
    return canvas


def _axes(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    left: int,
    heading: str,
    top: float,
    callers: list[int],
) -> None:
    for step in range(5):
        value = top * step / 4
        y = _y(value, top)
        pen.line((left + _MARGIN, y, left + _WIDTH - 48, y), fill=(221, 221, 221))
        label = f"{value:g}"
        pen.text((left + _MARGIN - 8 - pen.textlength(label, font=font), y - 8), label, font=font, fill="black")
    pen.text((left + _MARGIN, 34), heading, font=font, fill="black")
    for i, number in enumerate(callers):
        x = _x(left, i, len(callers))
        pen.text((x - 4, _HEIGHT - 44), str(number), font=font, fill="black")
    pen.text((left + _MARGIN, _HEIGHT - 24), "callers at a time", font=font, fill="black")


def _x(left: int, index: int, count: int) -> float:
    return left + _MARGIN + 24 + index * (_WIDTH - _MARGIN - 110) / max(1, count - 1)


def _y(value: float, top: float) -> float:
    return _HEIGHT - 54 - (_HEIGHT - 120) * value / top


def _nice(value: float) -> float:
    """The next number above of 1, 2, 4 or 8 times a power of ten, so that quarters of it are round."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value))
