"""Reading of one image within a deadline: in the calling thread, or in a process that ends with the deadline."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client._exceptions import ImageError, ImageTooLarge, XrayError
from xray_client._imaging.preprocessing import Preprocessing
from xray_client._imaging.reader import describe_source, load_radiograph, load_within, read_bytes

from .deadline import Deadline

# Detectors have up to 18 megapixels. A thread decodes as many in a moment, so it may be left to itself at the deadline;
# what is larger, or has many scans, goes to a process.
_LARGEST_IN_THREAD = 20_000_000
_MOST_BYTES_IN_THREAD = 64 * 2**20


def prepare_in_time(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    preprocessing: Preprocessing,
    deadline: Deadline,
    late: Callable[[], XrayError],
    *,
    isolate: bool,
) -> npt.NDArray[np.uint8]:
    """Read and prepare one image.

    Args:
        source: Path, bytes, binary file object or PIL image.
        preprocessing: Preprocessing of the model that will see it.
        deadline: Deadline of the call.
        late: The error to raise when it has passed.
        isolate: Decode in a process whatever the image is.

    Returns:
        uint8 (1, size, size).

    Raises:
        ImageError: The reader's own, or no process could be started.
        XrayError: That of `late`.
    """
    if isinstance(source, Image.Image):
        return load_radiograph(source, preprocessing)
    try:
        data = read_bytes(source)
        if deadline.passed:  # nobody waits for it any more
            raise late()
        if not isolate and len(data) <= _MOST_BYTES_IN_THREAD:
            try:
                return load_within(data, preprocessing, _LARGEST_IN_THREAD)
            except ImageTooLarge:
                pass
        from xray_client.decoding import processes_start_here, shared_decoders

        if not processes_start_here():
            return load_radiograph(data, preprocessing)
        try:
            return shared_decoders().decode(data, preprocessing, deadline.remaining)
        except TimeoutError as err:
            raise late() from err
    except ImageError as err:
        err.source = describe_source(source)
        raise
