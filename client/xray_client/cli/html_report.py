"""A page with all answers of one run: one file, opened in any browser, with nothing fetched from anywhere.

Written as the answers come, so its memory does not grow with them, and ended in good order after an interruption too.
Everything that comes from outside (names of files, words of a server) is escaped; the page's policy lets nothing load.
"""

from __future__ import annotations

import base64
import html
import io
import os
import time
from contextlib import suppress
from importlib import resources
from pathlib import Path
from string import Template
from types import TracebackType

from PIL import Image

from xray_client._exceptions import ImageError
from xray_client._imaging.overlay import FULL_EVIDENCE, colour_at, side_by_side
from xray_client._imaging.reader import read_radiograph
from xray_client._models import Failure, Prediction
from xray_client.contract import FINDINGS, RESEARCH_USE

from .writers import printable

_THUMBNAIL = 320
_FAILED = "failed"


class Report:
    """Writes the page; a context manager. The file appears, whole, when it ends.

    Args:
        path: The page to write; one that is there already is replaced in one step.

    Attributes:
        failed: Why the page could not be written to its end, such as a full disk; then there is none.

    Raises:
        OSError: It cannot be written at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.failed = ""
        self._unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
        self._head, self._tail = template.split("$rows")
        self._file = self._unfinished.open("w", encoding="utf-8", errors="replace")
        self._file.write(Template(self._head).substitute(
            when=time.strftime("%Y-%m-%d %H:%M"),
            research_use=html.escape(RESEARCH_USE),
            findings="".join(_checkbox(finding) for finding in (*FINDINGS, _FAILED)),
            scale=", ".join("rgb({}, {}, {})".format(*colour_at(step / 8)) for step in range(9)),
            full=f"{FULL_EVIDENCE:g}",
        ))  # fmt: skip

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        note = "" if kind is None else "This run was interrupted: not every image is listed."
        self._add(Template(self._tail).substitute(note=html.escape(note)))
        with suppress(OSError):  # what could not be written cannot be closed either
            self._file.close()
        try:
            if not self.failed:
                self._unfinished.replace(self._path)
        except OSError as err:
            self.failed = str(err.strerror or err)
        finally:
            self._unfinished.unlink(missing_ok=True)

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
    """The overlay, and under it the radiograph, which is seen while the pointer rests there."""
    if answer.file is None:
        return ""
    try:
        radiograph = read_radiograph(answer.file, at_least=_THUMBNAIL)
    except ImageError:  # gone since it was classified
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
