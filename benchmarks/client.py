"""What the client costs, each figure beside what it is compared with, both taken in turn in one run.

    make bench-client                                       # or, from the repository's root:
    python -m benchmarks.client --images DIR --repository model_repository

1. `classify` on a prepared image against the bare tritonclient call, on a real Triton with a model that does nothing.
2. A folder against the slower of decoding alone and the server alone: once with a server that takes time but none of
   this machine's cores, once with the model that is published here, which shares them.
3. Reading and preparing full-size radiographs against MedCLIP's own preprocessing.
4. Importing the package and starting the command line against importing tritonclient.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

from tests.helpers.faults import write_mean_model
from xray_build.repository.publish import versions
from xray_build.triton.server import TritonServer
from xray_client import Prediction, Preprocessing, XrayClient, contract, load_radiograph, read_radiograph

JOBS = 8
# Seconds that the model of the second measurement takes for an image without using a core, as on a machine of its own.
ELSEWHERE = 0.012
MEAN, STD = 0.5862785803043838, 0.27950088968644304  # MedCLIP's


def main() -> None:
    """Take the four measurements and print them as tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=Path, default=Path("../shared/data/originals"), help="full-size radiographs")
    options.add_argument("--repository", type=Path, default=Path("model_repository"), help="for the second measurement")
    options.add_argument("--count", type=int, default=1000, help="calls of each kind in the first measurement")
    told = options.parse_args()
    files = sorted(path for path in told.images.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if not files:
        sys.exit(f"no radiographs in {told.images}: name a folder of them with --images")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start; {len(files)} radiographs\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_mean_model(Path(temporary) / "repository")
        with TritonServer(Path(temporary) / "repository", port=0, metrics_port=0) as server:
            overhead(server.url, told.count)
            (folder / "delay").write_text(str(ELSEWHERE))
            folder_mode(server.url, files, f"a server elsewhere, {1000 * ELSEWHERE:g} ms an image")
    if versions(told.repository):
        with TritonServer(told.repository, port=0, metrics_port=0) as server:
            folder_mode(server.url, files, "the published model on the same cores")
    reading(files)
    start_up()
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


def in_turn(ways: Sequence[Callable[[], object]], count: int, warm_up: int) -> list[list[float]]:
    """Milliseconds of each call of each way: a busy machine slows all alike, and each takes its turn as first."""
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(warm_up + count):
        for place in range(len(ways)):
            way = (turn + place) % len(ways)
            before = time.perf_counter()
            ways[way]()
            if turn >= warm_up:
                taken[way].append(1000 * (time.perf_counter() - before))
    return taken


def overhead(url: str, count: int) -> None:
    """One prepared image, one caller."""
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224), dtype=np.uint8)
    with XrayClient(url) as client, triton.InferenceServerClient(url) as bare:

        def bare_call() -> None:
            tensor = triton.InferInput(contract.IMAGE, [1, 1, 224, 224], "UINT8")
            tensor.set_data_from_numpy(image[None])
            outputs = [triton.InferRequestedOutput(name) for name in contract.OUTPUTS]
            answer = bare.infer(contract.MODEL_NAME, [tensor], outputs=outputs, client_timeout=10)
            for name in contract.OUTPUTS:
                answer.as_numpy(name)

        ours, theirs = in_turn([lambda: client.classify(image), bare_call], count, warm_up=50)
    print(f"| one prepared image, {count} calls each in turn | p50 | p90 | p99 |\n|---|---|---|---|")
    for name, times in (("`classify`", ours), ("bare tritonclient", theirs)):
        print(f"| {name} | " + " | ".join(f"{np.percentile(times, p):.3f} ms" for p in (50, 90, 99)) + " |")
    extra = float(np.median(np.array(ours) - np.array(theirs)))
    ratio = np.percentile(ours, 50) / np.percentile(theirs, 50)
    print(
        f"\nOverhead of `classify`, median of the differences: {extra:+.3f} ms; p50 {ratio:.2f} times the bare call's\n"
    )


def folder_mode(url: str, files: list[Path], name: str) -> None:
    """Images a second: decoding alone, the server alone, both as `classify_many` does it; five rounds in turn."""
    many = list(itertools.islice(itertools.cycle(files), 96))
    with XrayClient(url, timeout=60) as client:
        record = client.preprocessing
        prepared = [load_radiograph(path, record) for path in many]

        def decode() -> None:
            with ThreadPoolExecutor(JOBS) as pool:
                for _ in pool.map(lambda path: load_radiograph(path, record), many):
                    pass

        def answer(sources: list[Path] | list[np.ndarray]) -> None:
            with closing(client.classify_many(sources, max_in_flight=JOBS)) as answers:
                assert all(isinstance(each, Prediction) for each in answers)

        taken = in_turn([decode, lambda: answer(prepared), lambda: answer(many)], 5, warm_up=1)
    alone, server, both = ([1000 * len(many) / ms for ms in times] for times in taken)
    ratios = [b / min(a, s) for a, s, b in zip(alone, server, both, strict=True)]
    shared = [b * (1 / a + 1 / s) for a, s, b in zip(alone, server, both, strict=True)]
    print(f"| folder of full-size JPEG, {JOBS} at a time; {name} | images/s |\n|---|---|")
    for what, rates in (("decoding alone", alone), ("server alone", server), ("folder", both)):
        print(f"| {what} | {statistics.median(rates):.1f} |")
    print(f"\nFolder against the slower of the two: {statistics.median(ratios):.2f} times", end="")
    print(f" ({min(ratios):.2f} to {max(ratios):.2f});", end=" ")
    print(f"against one after the other: {statistics.median(shared):.2f} times\n")


def medclips_own(path: Path) -> np.ndarray:
    """What MedCLIP does to a file: grey, a centred black square, bicubic, normalised, three channels. float32."""
    with Image.open(path) as opened:
        image = opened.convert("L")
    side = max(224, *image.size)
    square = Image.new("L", (side, side), 0)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / np.float32(255)
    return np.repeat(((pixels - np.float32(MEAN)) / np.float32(STD))[None], 3, axis=0)


def reading(files: list[Path]) -> None:
    """From the file to what the model takes; as JPEG, and decoded to PNG for how far the grey levels stray."""
    record = Preprocessing()
    ways: dict[str, Callable[[Path], object]] = {
        "this reader": lambda path: load_radiograph(path, record),
        "decoding alone, which no reader can leave out": lambda path: read_radiograph(path, at_least=4 * record.size),
        "MedCLIP's own steps": medclips_own,
    }
    best: dict[str, list[float]] = {name: [] for name in ways}
    for path in files:
        taken = in_turn([partial(way, path) for way in ways.values()], 9, warm_up=1)
        for name, times in zip(ways, taken, strict=True):
            best[name].append(min(times))
    strays = [stray(path, record) for path in files[:4]]
    theirs = best["MedCLIP's own steps"]
    print("| reading and preparing, best of 9 for each file | median | faster than MedCLIP's own steps, by file |")
    print("|---|---|---|")
    for name, ours in best.items():
        faster = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"| {name} | {statistics.median(ours):.1f} ms | {statistics.median(faster):.2f} times", end="")
        print(f" ({faster[0]:.2f} to {faster[-1]:.2f}) |")
    print(f"\nAt most {max(strays):.0f} grey levels apart from MedCLIP's on the same radiographs as PNG\n")


def stray(path: Path, record: Preprocessing) -> float:
    """Largest difference in grey levels on a lossless copy."""
    with tempfile.TemporaryDirectory() as folder, Image.open(path) as image:
        image.convert("L").save(Path(folder) / "copy.png")
        theirs = medclips_own(Path(folder) / "copy.png")[0] * np.float32(STD) + np.float32(MEAN)
        ours = load_radiograph(Path(folder) / "copy.png", record)[0]
    return float(np.abs(ours - np.rint(theirs * 255)).max())


def start_up() -> None:
    """Whole processes, best of seven in turn."""
    ways = {
        "python, and nothing": ["-c", ""],
        "import numpy, PIL.Image": ["-c", "import numpy, PIL.Image"],
        "import xray_client": ["-c", "import xray_client"],
        "import tritonclient.grpc": ["-c", "import tritonclient.grpc"],
        "xray-client --help": ["-c", "from xray_client.cli.main import main; main(['--help'])"],
    }
    calls = [lambda code=code: subprocess.run([sys.executable, *code], capture_output=True, check=True)
             for code in ways.values()]  # fmt: skip
    taken = {name: min(times) for name, times in zip(ways, in_turn(calls, 7, warm_up=1), strict=True)}
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
