"""Cost of the client, each figure beside what it is compared with, both timed in turn in one run.

    make bench PART=client DATA=chest_xray                  # folder of full-size radiographs
    python -m benchmarks.client --images chest_xray --repository model_repository

1. `classify` on a prepared image against the bare tritonclient call, on a real Triton with a model that does nothing.
2. A folder against the slower of decoding alone and the server alone: once with a server that takes time but none of
   this machine's cores, once with the model that is published here, which shares them.
3. Reading and preparing full-size radiographs against MedCLIP's own preprocessing.
4. Importing the package and starting the command line against importing tritonclient.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from PIL import Image

from benchmarks.medclip_reader import read_as_medclip
from benchmarks.timing import in_turn
from tests.helpers.faults import write_mean_model
from xray_build.repository.publish import versions
from xray_build.triton.server import TritonServer
from xray_client import Prediction, Preprocessing, XrayClient, contract, load_radiograph, read_radiograph
from xray_client.console import plain_errors

JOBS = 8
# Seconds that the model of the second measurement takes for an image without using a core, as on a machine of its own.
ELSEWHERE = 0.012
MEAN, STD = 0.5862785803043838, 0.27950088968644304  # MedCLIP's


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of full-size radiographs, PNG or JPEG.",
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    help="Model repository, for the second measurement.",
)
@click.option("--count", type=click.IntRange(1), default=1000, help="Calls of each kind in the first measurement.")
def main(images: Path, repository: Path, count: int) -> None:
    """Take the four measurements and print them as tables."""
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if not files:
        raise click.ClickException(f"no radiographs in {images}: name a folder of them with --images")
    with plain_errors():
        _measure(files, repository, count)


def _measure(files: list[Path], repository: Path, count: int) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start; {len(files)} radiographs\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_mean_model(Path(temporary) / "repository")
        with TritonServer(Path(temporary) / "repository", port=0, metrics_port=0) as server:
            overhead(server.url, count)
            (folder / "delay").write_text(str(ELSEWHERE))
            folder_mode(server.url, files, f"a server elsewhere, {1000 * ELSEWHERE:g} ms an image")
    if versions(repository):
        with TritonServer(repository, port=0, metrics_port=0) as server:
            folder_mode(server.url, files, "the published model on the same cores")
    reading(files)
    start_up()
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


def overhead(url: str, count: int) -> None:
    """Compare `classify` with a bare call, on one prepared image, for one caller."""
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224), dtype=np.uint8)
    with XrayClient(url) as client, triton.InferenceServerClient(url) as bare:

        def bare_call() -> None:
            tensor = triton.InferInput(contract.IMAGE, [1, 1, 224, 224], "UINT8")
            tensor.set_data_from_numpy(image[None])
            outputs = [triton.InferRequestedOutput(name) for name in contract.OUTPUTS]
            answer = bare.infer(contract.MODEL_NAME, [tensor], outputs=outputs, client_timeout=10)
            for name in contract.OUTPUTS:
                answer.as_numpy(name)

        ways: dict[str, Callable[[], object]] = {"ours": lambda: client.classify(image), "theirs": bare_call}
        ours, theirs = in_turn(ways, count, warm_up=50).values()
    print(f"| one prepared image, {count} calls each in turn | p50 | p90 | p99 |\n|---|---|---|---|")
    for name, times in (("`classify`", ours), ("bare tritonclient", theirs)):
        print(f"| {name} | " + " | ".join(f"{np.percentile(times, p):.3f} ms" for p in (50, 90, 99)) + " |")
    extra = float(np.median(ours - theirs))
    ratio = np.percentile(ours, 50) / np.percentile(theirs, 50)
    print(
        f"\nOverhead of `classify`, median of the differences: {extra:+.3f} ms; p50 {ratio:.2f} times the bare call's\n"
    )


def folder_mode(url: str, files: list[Path], name: str) -> None:
    """Print images a second of decoding alone, the server alone, and both in `classify_many`; five rounds in turn."""
    many = list(itertools.islice(itertools.cycle(files), 96))
    with XrayClient(url, timeout=60) as client:
        preprocessing = client.preprocessing
        prepared = [load_radiograph(path, preprocessing) for path in many]

        def decode() -> None:
            with ThreadPoolExecutor(JOBS) as pool:
                for _ in pool.map(lambda path: load_radiograph(path, preprocessing), many):
                    pass

        def answer(sources: list[Path] | list[npt.NDArray[np.uint8]]) -> None:
            with closing(client.classify_many(sources, max_in_flight=JOBS)) as answers:
                assert all(isinstance(each, Prediction) for each in answers)

        ways: dict[str, Callable[[], object]] = {
            "decoding alone": decode,
            "server alone": lambda: answer(prepared),
            "folder": lambda: answer(many),
        }
        rates = {name: 1000 * len(many) / times for name, times in in_turn(ways, 5, warm_up=1).items()}
    alone, server, both = rates.values()
    ratios = both / np.minimum(alone, server)
    one_after_the_other = both * (1 / alone + 1 / server)
    print(f"| folder of full-size JPEG, {JOBS} at a time; {name} | images/s |\n|---|---|")
    for way, values in rates.items():
        print(f"| {way} | {np.median(values):.1f} |")
    print(f"\nFolder against the slower of the two: {np.median(ratios):.2f} times", end="")
    print(f" ({min(ratios):.2f} to {max(ratios):.2f});", end=" ")
    print(f"against one after the other: {np.median(one_after_the_other):.2f} times\n")


def medclips_own(path: Path) -> npt.NDArray[np.float32]:
    """Prepare a file by MedCLIP's own steps: read, normalise, three channels."""
    pixels = read_as_medclip(path).astype(np.float32) / np.float32(255)
    return np.repeat(((pixels - np.float32(MEAN)) / np.float32(STD))[None], 3, axis=0)


def reading(files: list[Path]) -> None:
    """Compare reading and preparing a file with MedCLIP's own steps: time, and difference in grey levels."""
    preprocessing = Preprocessing()
    ways: dict[str, Callable[[Path], object]] = {
        "this reader": lambda path: load_radiograph(path, preprocessing),
        "decoding alone, which no reader can leave out": lambda path: read_radiograph(
            path, at_least=4 * preprocessing.size
        ),
        "MedCLIP's own steps": medclips_own,
    }
    best: dict[str, list[float]] = {name: [] for name in ways}
    for path in files:
        taken = in_turn({name: partial(way, path) for name, way in ways.items()}, 9, warm_up=1)
        for name, times in taken.items():
            best[name].append(min(times))
    differences = [difference(path, preprocessing) for path in files[:4]]
    theirs = best["MedCLIP's own steps"]
    print("| reading and preparing, best of 9 for each file | median | faster than MedCLIP's own steps, by file |")
    print("|---|---|---|")
    for name, ours in best.items():
        faster = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"| {name} | {statistics.median(ours):.1f} ms | {statistics.median(faster):.2f} times", end="")
        print(f" ({faster[0]:.2f} to {faster[-1]:.2f}) |")
    print(f"\nAt most {max(differences):.0f} grey levels apart from MedCLIP's on the same radiographs as PNG\n")


def difference(path: Path, preprocessing: Preprocessing) -> float:
    """Largest difference from MedCLIP's own steps in grey levels, on a lossless copy."""
    with tempfile.TemporaryDirectory() as folder, Image.open(path) as image:
        image.convert("L").save(Path(folder) / "copy.png")
        theirs = medclips_own(Path(folder) / "copy.png")[0] * np.float32(STD) + np.float32(MEAN)
        ours = load_radiograph(Path(folder) / "copy.png", preprocessing)[0]
    return float(np.abs(ours - np.rint(theirs * 255)).max())


def start_up() -> None:
    """Compare the start of whole processes, best of seven in turn."""
    ways = {
        "python, and nothing": ["-c", ""],
        "import numpy, PIL.Image": ["-c", "import numpy, PIL.Image"],
        "import xray_client": ["-c", "import xray_client"],
        "import tritonclient.grpc": ["-c", "import tritonclient.grpc"],
        "xray-client --help": ["-c", "from xray_client.cli.main import main; main(['--help'])"],
    }
    calls = {
        name: partial(subprocess.run, [sys.executable, *code], capture_output=True, check=True)
        for name, code in ways.items()
    }
    taken = {name: min(times) for name, times in in_turn(calls, 7, warm_up=1).items()}
    print("| a process that runs | best of 7 |\n|---|---|")
    for name, ms in taken.items():
        print(f"| `{name}` | {ms:.0f} ms |")
    nothing, theirs = taken["python, and nothing"], taken["import tritonclient.grpc"]
    ours, help_page = taken["import xray_client"], taken["xray-client --help"]
    print("\nBeyond the interpreter's own start, against `import tritonclient.grpc`: `import xray_client` ", end="")
    print(f"{(ours - nothing) / (theirs - nothing):.2f},", end=" ")
    print(f"`xray-client --help` {(help_page - nothing) / (theirs - nothing):.2f}")


if __name__ == "__main__":
    main()
