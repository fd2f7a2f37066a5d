"""Files and folders that are not taken: counts by reason for the terminal, and the whole list as a table."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from .names import ENCODING_ERRORS, shown
from .records import LeftOut

_EXAMPLES = 3


def left_out_lines(left_out: Iterable[LeftOut]) -> list[str]:
    """Return one line for each reason: the number of files, and the first of them."""
    by_reason: dict[str, list[LeftOut]] = defaultdict(list)
    for entry in left_out:
        by_reason[entry.reason].append(entry)
    lines = []
    for reason, entries in sorted(by_reason.items(), key=lambda item: -sum(entry.files for entry in item[1])):
        files = sum(entry.files for entry in entries)
        names = ", ".join(shown(entry.file) for entry in entries[:_EXAMPLES])
        more = f" and {len(entries) - _EXAMPLES} more" if len(entries) > _EXAMPLES else ""
        lines.append(f"left out, {reason}: {files} {'file' if files == 1 else 'files'}: {names}{more}")
    return lines


def write_left_out(path: Path, left_out: Iterable[LeftOut]) -> None:
    """Write a table with the columns file, reason and files."""
    with path.open("w", newline="", encoding="utf-8", errors=ENCODING_ERRORS) as file:
        csv.writer(file).writerows([("file", "reason", "files"), *((e.file, e.reason, e.files) for e in left_out)])
