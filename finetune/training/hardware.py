"""Properties of the machine: precision, memory kept between steps, rank of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path


def rank() -> int:
    """Rank of this training process, 0 for the only or first one; known before Lightning has set up the others."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if value := os.environ.get(name):
            return int(value)
    return 0


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of giving it back to the kernel.

    A step frees and takes hundreds of megabytes of activations again; without this, a fifth to a third of a training
    step on a CPU goes into page faults. Does nothing with another C library.
    """
    m_trim_threshold, m_mmap_threshold, large = -1, -3, 2**31 - 1
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, large)
        mallopt(m_mmap_threshold, large)


def lightning_precision(name: str) -> str:
    """Lightning's name of a precision; "auto" takes bfloat16 where it is faster."""
    if name == "auto":
        name = "bf16" if _bfloat16_is_faster() else "32"
    return {"32": "32-true", "bf16": "bf16-mixed"}[name]


def _bfloat16_is_faster() -> bool:
    """On a GPU that has it, and on a CPU with matrix tiles (AMX).

    AVX-512's bfloat16 instructions alone speed the forward pass up by a tenth and slow the backward pass of depthwise
    convolutions down to half: 60 ms an image for a step of EfficientNet-Lite0 against 33 ms in 32 bits.
    """
    import torch  # late: `rank` is asked by commands whose --help should not wait

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags
