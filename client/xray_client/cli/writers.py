"""Output formats of the command line: a table for people; JSON, JSON lines and CSV for programs.

The formats for programs are never coloured, folded or cut, and every row is flushed, so that a crash loses no answer.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, TextIO

from xray_client import Failure, Prediction

COLUMNS = ("file", "finding", "probability", "decision", "novelty", "model", "version", "milliseconds", "error")
THRESHOLD = "above_threshold"


class Writer(ABC):
    """Base of the formats; a context manager, which completes the document even after an interruption.

    Args:
        stream: Stream to write to.
        threshold: Add a column that tells if the probability of Pneumonia reaches it; None = no such column.
    """

    def __init__(self, stream: TextIO, *, threshold: float | None = None) -> None:
        self._stream = stream
        self._threshold = threshold

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, BrokenPipeError):
            self.end()
            self._stream.flush()

    def row(self, answer: Prediction | Failure) -> dict[str, Any]:
        """Convert an answer to a row."""
        row = answer.to_dict()
        if self._threshold is not None:
            row[THRESHOLD] = self.reaches(answer)
        return row

    def reaches(self, answer: Prediction | Failure) -> bool | None:
        """Compare the probability with the threshold; None without a threshold or a probability."""
        if self._threshold is None or isinstance(answer, Failure):
            return None
        return answer.probability >= self._threshold

    @abstractmethod
    def write(self, answer: Prediction | Failure) -> None:
        """Add one answer."""

    def end(self) -> None:  # noqa: B027 - not every format needs it
        """Complete the document."""


class JsonLines(Writer):
    """JSON lines: one object a line."""

    def write(self, answer: Prediction | Failure) -> None:
        self._stream.write(json.dumps(self.row(answer)) + "\n")
        self._stream.flush()


class JsonArray(Writer):
    """JSON: one array of objects."""

    _before = "["

    def write(self, answer: Prediction | Failure) -> None:
        self._stream.write(f"{self._before}\n  {json.dumps(self.row(answer))}")
        self._stream.flush()
        self._before = ","

    def end(self) -> None:
        self._stream.write("[]\n" if self._before == "[" else "\n]\n")


class Csv(Writer):
    """CSV: a heading and one line for each file (RFC 4180, with plain line feeds).

    Args:
        safe: Put an apostrophe before a text that a spreadsheet would take for a formula.
    """

    def __init__(self, stream: TextIO, *, threshold: float | None = None, safe: bool = False) -> None:
        super().__init__(stream, threshold=threshold)
        self._safe = safe
        columns = COLUMNS if threshold is None else (*COLUMNS, THRESHOLD)
        self._rows = csv.DictWriter(stream, columns, lineterminator="\n")
        self._rows.writeheader()

    def write(self, answer: Prediction | Failure) -> None:
        row = self.row(answer)
        if self._safe:
            row = {name: f"'{cell}" if _is_formula(cell) else cell for name, cell in row.items()}
        self._rows.writerow(row)
        self._stream.flush()


def _is_formula(cell: Any) -> bool:
    return isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))


class Table(Writer):
    """Table for people, written at the end."""

    def __init__(self, stream: TextIO, *, threshold: float | None = None) -> None:
        super().__init__(stream, threshold=threshold)
        self._answers: list[Prediction | Failure] = []

    def write(self, answer: Prediction | Failure) -> None:
        self._answers.append(answer)

    def end(self) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        if not self._answers:
            return
        console = Console(file=self._stream, highlight=False)
        if not console.is_terminal:
            console = Console(file=self._stream, highlight=False, width=10_000)  # nothing is folded in a file
        table = RichTable(box=None, pad_edge=False, header_style="bold")
        table.add_column("file", overflow="fold")
        table.add_column("finding", no_wrap=True)
        for heading in ("probability", "novelty", "version", "ms"):
            table.add_column(heading, justify="right", overflow="fold")
        if self._threshold is not None:
            table.add_column(f"from {self._threshold:g}")
        for answer in self._answers:
            reaches = {True: "yes", False: "no", None: ""}[self.reaches(answer)]
            # Text, not markup: a file may be named [red].
            table.add_row(
                *(Text(cell, style=style) for cell, style in [*_cells(answer), (reaches, "")][: len(table.columns)])
            )
        console.print(table)
        for answer in self._answers:
            if isinstance(answer, Failure):
                console.print(Text(printable(str(answer)), style="red"), soft_wrap=True)
        if any(isinstance(answer, Prediction) and answer.novel for answer in self._answers):
            console.print(Text("! unlike the training radiographs: do not rely on this answer", style="magenta"))


def _cells(answer: Prediction | Failure) -> list[tuple[str, str]]:
    file = printable(answer.file or "image")
    duration = f"{answer.milliseconds:.1f}"
    if isinstance(answer, Failure):
        return [(file, ""), ("failed", "red"), *[("", "")] * 3, (duration, "")]
    colour = {"Pneumonia": "yellow", "Uncertain": "cyan"}.get(answer.finding, "")
    return [
        (file, ""),
        (answer.finding, colour),
        (f"{answer.probability:.3f}", ""),
        (f"! {answer.novelty:.2f}", "magenta") if answer.novel else (f"{answer.novelty:.2f}", ""),
        (printable(answer.model_version), ""),
        (duration, ""),
    ]


def printable(text: str) -> str:
    """Replace what a terminal cannot show, or would take for a command."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


WRITERS: dict[str, type[Writer]] = {"table": Table, "json": JsonArray, "jsonl": JsonLines, "csv": Csv}
