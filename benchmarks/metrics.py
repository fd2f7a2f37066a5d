"""What counting the answers costs: two servers with the same published model, one of which does not count, in turn.

    python -m benchmarks.metrics                  # from the repository's root; the reference model, 300 calls

The server that does not count has an ensemble without its last step, and a `counting.py` whose `count` does nothing.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

from benchmarks.client import in_turn
from finetune.export import export_and_publish
from xray_build.artefacts import COUNTING_CODE_FILE
from xray_build.repository.ensemble import ensemble_config
from xray_build.triton.server import TritonServer
from xray_client import XrayClient, contract

WARM_UP = 20


def main() -> None:
    """Time both ways in, on both servers."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=300, help="calls of each way")
    told = options.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    with tempfile.TemporaryDirectory() as temporary:
        counting, silent = Path(temporary) / "counting", Path(temporary) / "silent"
        export_and_publish(Path("reference"), counting)
        without_counting(counting, silent)
        with (
            TritonServer(counting, port=0, metrics_port=0) as first,
            TritonServer(silent, port=0, metrics_port=0) as second,
        ):
            measure(first.url, second.url, told.count)


def without_counting(counting: Path, silent: Path) -> None:
    """A copy of the repository that does not count."""
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
    """Print what each way takes."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(file, "PNG")
    encoded = triton.InferInput(contract.ENCODED, (1, 1), "BYTES")
    encoded.set_data_from_numpy(np.array([[file.getvalue()]], dtype=object))
    with (
        XrayClient(counting) as client,
        XrayClient(silent) as other,
        triton.InferenceServerClient(counting) as plain,
        triton.InferenceServerClient(silent) as plain_other,
    ):
        ways = {
            "prepared image to medclip": (lambda: client.classify(pixels), lambda: other.classify(pixels)),
            "file to xray_classifier": (
                lambda: plain.infer(contract.ENSEMBLE_MODEL, [encoded], client_timeout=30),
                lambda: plain_other.infer(contract.ENSEMBLE_MODEL, [encoded], client_timeout=30),
            ),
        }
        for name, pair in ways.items():
            counted, uncounted = (np.array(taken) for taken in in_turn(pair, count, WARM_UP))
            p50, before = np.median(counted), np.median(uncounted)
            print(
                f"{name}: p50 {p50:.2f} ms counted, {before:.2f} ms not; ratio {p50 / before:.3f}; "
                f"median of the differences {np.median(counted - uncounted):+.2f} ms"
            )


if __name__ == "__main__":
    main()
