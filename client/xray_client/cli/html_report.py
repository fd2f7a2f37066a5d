"""HTML report of one run: one file for any browser, which loads nothing from anywhere.

It is written as the answers come, so that memory does not grow, and is complete even after an interruption. Text from
outside (names of files, messages of a server) is escaped, and the page's content security policy lets nothing load.
"""

from __future__ import annotations

import base64
import html
import io
import time
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from string import Template
from types import TracebackType

from PIL import Image

from xray_client import FINDINGS, RESEARCH_USE, Failure, ImageError, Prediction, read_radiograph
from xray_client._imaging.overlay import FULL_EVIDENCE, colour_at, side_by_side
from xray_client.files import replacing

from .writers import printable

# In the head of every page that this module has written.
REPORT_MARK = b"<title>Chest radiographs, classified "
_TEMPLATE = "report_template.html"
_THUMBNAIL = 320  # pixels of the longer side
_FAILED = "failed"


class HtmlReport:
    """Writer of the page; a context manager. The file appears complete, at the end.

    Args:
        path: HTML file to write; an existing file is replaced in one step.

    Attributes:
        failed: Reason why the page could not be written, such as a full disk; empty = none. Then no file appears.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.failed = ""
        template = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
        self._head, self._tail = template.split("$rows")

    def __enter__(self) -> HtmlReport:
        """Open the file and write the head of the page.

        Raises:
            OSError: The file cannot be written at all.
        """
        with ExitStack() as stack:
            unfinished = stack.enter_context(replacing(self._path, durable=False))
            self._file = stack.enter_context(unfinished.open("w", encoding="utf-8", errors="replace"))
            self._open_file = stack.pop_all()
        self._add(Template(self._head).substitute(
            when=time.strftime("%Y-%m-%d %H:%M"),
            research_use=html.escape(RESEARCH_USE),
            findings="".join(_checkbox(finding) for finding in (*FINDINGS, _FAILED)),
            scale=", ".join("rgb({}, {}, {})".format(*colour_at(step / 8)) for step in range(9)),
            full=f"{FULL_EVIDENCE:g}",
        ))  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        note = "" if kind is None else "This run was interrupted: not every image is listed."
        self._add(Template(self._tail).substitute(note=html.escape(note)))
        try:
            with self._open_file:
                if self.failed:
                    raise OSError(self.failed)
        except OSError as err:
            self.failed = self.failed or str(err.strerror or err)

    def write(self, answer: Prediction | Failure) -> None:
        """Add one answer."""
        self._add(_row(answer))

    def _add(self, text: str) -> None:
        if self.failed:
            return
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as err:
            self.failed = str(err.strerror or err)


def _row(answer: Prediction | Failure) -> str:
    file = html.escape(printable(answer.file or "image"))
    if isinstance(answer, Failure):
        reason = html.escape(printable(f"{type(answer.error).__name__}: {answer.reason}"))
        return (
            f'<tr data-finding="{_FAILED}" data-novel="0"><td></td><td class="file">{file}</td>'
            f'<td class="failed" data-value="{_FAILED}">{_FAILED}: {reason}</td><td data-value="-1"></td>'
            f'<td data-value="-1"></td><td></td><td data-value="{answer.milliseconds:.3f}">'
            f"{answer.milliseconds:.0f}</td></tr>\n"
        )
    finding = html.escape(answer.finding)
    unlike = '<strong title="unlike the training radiographs">! </strong>' if answer.novel else ""
    return (
        f'<tr data-finding="{finding}" data-novel="{answer.novel:d}"><td>{_pictures(answer)}</td>'
        f'<td class="file">{file}</td><td class="{finding.lower()}" data-value="{finding}">{finding}</td>'
        f'<td data-value="{answer.probability:.6f}">{answer.probability:.3f}'
        f'<span class="bar" style="--share:{answer.probability:.4f}"></span></td>'
        f'<td data-value="{answer.novelty:.6f}">{unlike}{answer.novelty:.2f}</td>'
        f"<td>{html.escape(printable(answer.model))} {html.escape(printable(answer.model_version))}</td>"
        f'<td data-value="{answer.milliseconds:.3f}">{answer.milliseconds:.0f}</td></tr>\n'
    )


def _pictures(answer: Prediction) -> str:
    """Embed the overlay on top of the radiograph, which shows while the pointer rests there."""
    if answer.file is None:
        return ""
    try:
        radiograph = read_radiograph(answer.file, at_least=_THUMBNAIL)
    except ImageError:  # deleted since it was classified
        return ""
    plain, painted = side_by_side(radiograph, answer, _THUMBNAIL)
    width, height = plain.size
    size = f'width="{width // 2}" height="{height // 2}"'
    return (
        f'<span class="pictures" tabindex="0"><img {size} alt="radiograph" loading="lazy" src="{_embed(plain)}">'
        f'<img {size} alt="evidence for Pneumonia" class="evidence" loading="lazy" src="{_embed(painted)}"></span>'
    )


def _embed(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _checkbox(finding: str) -> str:
    name = html.escape(finding)
    return f'<label><input type="checkbox" name="finding" value="{name}" checked> {name}</label>\n'
