"""The log of a tritonserver: its place, and the errors in it."""

from __future__ import annotations

import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path

# Read from the end of a log, bytes.
_MOST_BYTES = 2**18

_STATUS = re.compile(
    r"^(?:version \d+ is at UNAVAILABLE state: )?"
    r"(?:(?:Internal|Invalid argument|Not found|Unavailable|Unsupported|Unknown|Already exists)(?: - |: ))?"
)
_LOAD_FAILED = re.compile(
    r"load failed for model '([^']+)': (.*?);?\s*(?=^load failed for model|^[IWE]\d{4} |\Z)", re.DOTALL | re.MULTILINE
)
_POLL_FAILED = re.compile(
    r"""(?:Poll failed for model directory|failed to poll model) '([^']+)': (.*?)"?$""", re.MULTILINE
)
_STUB_FAILED = re.compile(r"Failed to preinitialize Python stub: (.*?)\s*$", re.MULTILINE)
_CONFIG_ERROR = re.compile(r"Error parsing text-format inference\.ModelConfig: (.*)$", re.MULTILINE)
_PORT_TAKEN = re.compile(r"Socket '127\.0\.0\.1:(\d+)' already in use")
_ERROR = re.compile(r"E\d{4} |error: |Signal \((?!15\)|2\))")
# Printed by every start on a machine without a GPU.
_IGNORED = ("CudaDriverHelper",)


def default_log(repository: Path, port: int) -> Path:
    """Choose a new file in runs/server beside the repository or, if that cannot be written, in a temporary folder."""
    folder = repository.parent / "runs" / "server"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.mkdtemp(prefix="xray-server-log-"))
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{port}.log"


def read_log(path: Path, start: int) -> str:
    """Read a log from byte `start` on, at most its last 256 KiB."""
    with path.open("rb") as log:
        log.seek(max(start, log.seek(0, os.SEEK_END) - _MOST_BYTES))
        return log.read().decode(errors="replace")


def fatal_before_exit(log: str) -> bool:
    """True if the log holds an error after which tritonserver runs on and is never ready, waiting for a dead stub."""
    return bool(_STUB_FAILED.search(log))


def port_taken(log: str) -> int | None:
    """The port that tritonserver could not listen on; None if the log names none."""
    found = _PORT_TAKEN.search(log)
    return int(found[1]) if found else None


def failure_reasons(log: str) -> list[str]:
    """Reasons of a failed start: one for each model, else the last errors of the log, else its last line."""
    reasons = [f"model {name!r} failed to load: {_reason(text)}" for name, text in _LOAD_FAILED.findall(log)]
    for name, text in _POLL_FAILED.findall(log):
        detail = _CONFIG_ERROR.search(log) if "text proto" in text else None
        reasons.append(f"model {name!r} failed to load: {text}" + (f": {detail[1]}" if detail else ""))
    reasons += [f"a model failed to load: {text}" for text in _STUB_FAILED.findall(log)]
    return reasons or last_errors(log) or _lines(log)[-1:] or ["tritonserver ended without an error message"]


def _reason(text: str) -> str:
    """Triton's message on one line, without its status, with the line of the model's own code if it names one."""
    words, _, trace = text.partition("\n\nAt:\n")
    places = [line.strip() for line in trace.splitlines() if "/model.py(" in line]  # innermost first
    return " ".join(_STATUS.sub("", words).split()) + (f" (at {places[0]})" if places else "")


def last_errors(log: str, count: int = 3) -> list[str]:
    """The last `count` error lines; empty without errors."""
    errors = [line for line in _lines(log) if _ERROR.match(line) and not any(ignored in line for ignored in _IGNORED)]
    return errors[-count:]


def last_line(log: str) -> str:
    """The last line of the log."""
    return next(reversed(_lines(log)), "nothing")


def _lines(log: str) -> list[str]:
    """Lines of the log without its tables."""
    return [line.strip() for line in log.splitlines() if line.strip() and not line.startswith(("|", "+"))]
