"""Cost of counting the answers: two servers with the same published model, one of which does not count, in turn.

    make bench PART=metrics                       # the reference model, 300 calls a way

The server that does not count has an ensemble without its last step, and a `counting.py` whose `count` does nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import click
import numpy as np
import tritonclient.grpc as triton

from benchmarks.timing import in_turn, noise_png
from finetune.export import export_and_publish
from xray_build.artefacts import COUNTING_CODE_FILE
from xray_build.repository.ensemble import ensemble_config
from xray_build.triton.server import TritonServer
from xray_client import Preprocessing, XrayClient, contract, load_radiograph
from xray_client.console import plain_errors

WARM_UP = 20


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--count", type=click.IntRange(1), default=300, help="Calls a way.")
def main(count: int) -> None:
    """Time both ways into both servers."""
    click.echo(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    with plain_errors(), tempfile.TemporaryDirectory() as temporary:
        counting, silent = Path(temporary) / "counting", Path(temporary) / "silent"
        export_and_publish(Path("reference"), counting)
        without_counting(counting, silent)
        with (
            TritonServer(counting, port=0, metrics_port=0) as first,
            TritonServer(silent, port=0, metrics_port=0) as second,
        ):
            measure(first.url, second.url, count)


def without_counting(counting: Path, silent: Path) -> None:
    """Copy the repository, without the counting."""
    shutil.copytree(counting, silent)
    (silent / contract.MODEL_NAME / "1" / COUNTING_CODE_FILE).write_text(
        "TENSORS = ()\n\n\nclass Answers:\n    metrics = count = end = __init__ = lambda self, *_: None\n"
    )
    config = ensemble_config()
    _, answer, counting_step = config.ensemble_scheduling.step
    config.ensemble_scheduling.step.remove(counting_step)
    answer.output_map.update({name: name for name in contract.OUTPUTS})
    (silent / contract.ENSEMBLE_MODEL / "config.pbtxt").write_text(str(config))
    shutil.rmtree(silent / contract.METRICS_MODEL)


def measure(counting: str, silent: str, count: int) -> None:
    """Print the milliseconds of each way, with and without counting."""
    file = noise_png()
    prepared = load_radiograph(file, Preprocessing())
    encoded = triton.InferInput(contract.ENCODED, (1, 1), "BYTES")
    encoded.set_data_from_numpy(np.array([[file]], dtype=object))
    with (
        XrayClient(counting) as client,
        XrayClient(silent) as other,
        triton.InferenceServerClient(counting) as plain,
        triton.InferenceServerClient(silent) as plain_other,
    ):
        ways = {
            "prepared image to medclip": {
                "counted": lambda: client.classify(prepared),
                "not": lambda: other.classify(prepared),
            },
            "file to xray_classifier": {
                "counted": lambda: plain.infer(contract.ENSEMBLE_MODEL, [encoded], client_timeout=30),
                "not": lambda: plain_other.infer(contract.ENSEMBLE_MODEL, [encoded], client_timeout=30),
            },
        }
        for name, pair in ways.items():
            counted, uncounted = in_turn(pair, count, warm_up=WARM_UP).values()
            p50, before = np.median(counted), np.median(uncounted)
            click.echo(
                f"{name}: p50 {p50:.2f} ms counted, {before:.2f} ms not; ratio {p50 / before:.3f}; "
                f"median of the differences {np.median(counted - uncounted):+.2f} ms"
            )


if __name__ == "__main__":
    main()
