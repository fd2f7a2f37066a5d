"""Damaged images by the thousand: whatever the bytes, the reader answers with a grey image or with one of its errors.

    python -m tests.client.imaging.fuzz                          # from the repository's root: ten minutes, 2 GB
    python -m tests.client.imaging.fuzz --seconds 60 --memory 1024 --seed 7

Hypothesis takes whole files of every kind and cuts, repeats, swaps and overwrites parts of them. It runs under a limit
of memory and of time for each file, so a decoder that asks for too much, never ends or brings the interpreter down is
found as well; the file that did it is left in the folder that is named. Exit code 0 where nothing was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from xray_client import ImageError, read_radiograph
from xray_client._imaging.reader import MAX_PIXELS

# Seconds for one file; all of them are small.
LONGEST = 30
# Numbers that a header should not hold.
EXTREMES = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x01", b"\xff\xfe", b"\0\x10"]


def whole_files() -> list[bytes]:
    """Small files of every kind that the reader knows, and of some that it refuses."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, RLELossless

    from tests.client.imaging.test_dicom import GREY as GREY_8_BIT
    from tests.client.imaging.test_dicom import SHOWN
    from tests.client.imaging.test_reader import READ, REFUSED, encode
    from tests.helpers.data import REAL_DATA
    from tests.helpers.dicom_files import encoded, made

    files = [data for _, data, *_ in (*READ, *REFUSED) if data]
    files += [encoded(dataset) for dataset, _ in SHOWN.values()]
    run_length = made()
    run_length.compress(RLELossless)
    baseline = encode(Image.fromarray(GREY_8_BIT), "JPEG")
    jpeg = made(GREY_8_BIT, bits=8, syntax=JPEGBaseline8Bit, PixelData=encapsulate([baseline]))
    jpeg["PixelData"].is_undefined_length = True
    files += [encoded(run_length), encoded(jpeg)]
    real = REAL_DATA / "dicom"
    # The starts of real files in other transfer syntaxes: their headers are what is read first.
    files += [path.read_bytes()[:40_000] for path in sorted(real.glob("*"))] if real.is_dir() else []
    return files


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """One of these files with one to six things done to it."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        # Near the front more often than not: that is where the headers are.
        at = draw(st.integers(0, min(len(data), 400) - 1) | st.integers(0, len(data) - 1))
        length = draw(st.integers(1, 64))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[at : at + length] = draw(st.binary(min_size=1, max_size=length))
        elif kind == 1:
            data[at : at + 4] = draw(st.sampled_from(EXTREMES))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * draw(st.integers(1, 8))
        elif kind == 4:
            del data[at:]
        else:
            other = draw(st.sampled_from(files))
            data[at:] = other[draw(st.integers(0, len(other) - 1)) :]
    return bytes(data)


def outcome(data: bytes) -> str:
    """What the reader makes of these bytes; anything but a grey image or an `ImageError` is raised."""
    try:
        image = read_radiograph(data, at_least=64)
    except ImageError as err:
        str(err)
        return type(err).__name__
    pixels = np.asarray(image)
    if image.mode != "L" or pixels.dtype != np.uint8 or not 0 < pixels.size <= MAX_PIXELS:
        raise AssertionError(f"read as {image.mode} {pixels.dtype} {pixels.shape}")
    return "read"


def fuzz(examples: int, first_seed: int, until: float, folder: Path) -> Counter[str]:
    """Rounds of so many damaged files until `until` (of `time.monotonic`), at least one; gives the outcomes."""
    files = whole_files()
    outcomes: Counter[str] = Counter()
    kept = folder / "last-file"

    def one(data: bytes) -> None:
        kept.write_bytes(data)
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        outcomes[outcome(data)] += 1
        faulthandler.cancel_dump_traceback_later()

    number = first_seed
    while True:
        quick = settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
                         suppress_health_check=list(HealthCheck))  # fmt: skip
        seed(number)(quick(given(damaged(files))(one)))()
        number += 1
        if time.monotonic() >= until:
            break
    kept.unlink()
    return outcomes


def main() -> None:
    """Fuzz under limits, and say what came of it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=600, help="how long (0 = one round)")
    options.add_argument("--examples", type=int, default=2000, help="files a round")
    options.add_argument("--memory", type=int, default=2048, help="MB of address space (0 = no limit)")
    options.add_argument("--seed", type=int, default=0, help="of the first round; the next has the next")
    told = options.parse_args()
    if told.memory:
        resource.setrlimit(resource.RLIMIT_AS, (told.memory * 2**20,) * 2)
    faulthandler.enable()
    warnings.simplefilter("ignore")  # Pillow and pydicom warn of what they are about to fail on
    folder = Path(tempfile.mkdtemp(prefix="xray-fuzz-"))
    print(f"the file under way is {folder / 'last-file'}", file=sys.stderr)
    outcomes = fuzz(told.examples, told.seed, time.monotonic() + told.seconds, folder)
    print(f"{sum(outcomes.values())} files:", ", ".join(f"{count} {name}" for name, count in outcomes.most_common()))


if __name__ == "__main__":
    main()
