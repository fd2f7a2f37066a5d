"""Report of an audit: a summary on the terminal, and an HTML page with contact sheets."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from finetune.data.audit import Audit, DuplicateGroup
from finetune.data.left_out import left_out_lines
from finetune.data.names import shown
from finetune.data.sources import Source
from xray_client import LABELS, read_radiograph

_SHOWN = 5  # entries of a list on the terminal
_SHOWN_ON_PAGE = 100
_SHEET = (8, 6)  # columns, rows
_TILE, _CAPTION = 132, 14  # pixels
_PAIRS_PER_ROW = 4


def show(audit: Audit) -> None:
    """Print a summary to standard output."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120
    table = Table("split", *LABELS, "share of Pneumonia", title=audit.source)
    for split, counts in audit.counts.items():
        cells = [f"{n['radiographs']} of {n['patients']} patients" for n in counts.values()]
        table.add_row(split, *cells, f"{_share(counts):.1%}")
    console.print(table)
    for label in filter(audit.formats.get, LABELS):
        console.print(f"{label}: {_most(audit.formats[label])}; {_most(audit.sizes[label])}")
    for sentence in audit.notes:
        console.print(sentence, style="yellow", markup=False)
    for line in left_out_lines(audit.left_out):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    _print_list(console, "unreadable", [f"{shown(f['file'])}: {f['reason']}" for f in audit.unreadable])
    _print_list(console, "copies, byte for byte", [" = ".join(map(shown, c.files)) for c in audit.exact_duplicates])
    _print_list(console, "copies, saved anew", [_near(c) for c in audit.near_duplicates])
    _print_list(console, "copies labelled both ways", [" = ".join(map(shown, c.files)) for c in _contradictions(audit)])
    in_both = [f"{shown(t.patient)}: {len(t.files)} radiographs" for t in audit.patients_in_both_classes]
    _print_list(console, "patients in both classes", in_both)
    _print_list(
        console,
        "shortcuts: separate the classes without the image",
        [f"{s.property}: AUROC {s.auroc:.3f} (median {_medians(s.median)})" for s in audit.shortcuts if s.suspicious],
    )
    for title, files in _oddities(audit):
        _print_list(console, title, files)
    _print_list(console, "leakage between training, validation and test", audit.leakage, style="red")
    console.print(f"{len(audit.files)} files in {audit.seconds} s")


def _print_list(console: Console, title: str, lines: Sequence[str], style: str = "yellow") -> None:
    console.print(f"{title}: {len(lines) or 'none'}", style=style if lines else "green")
    for line in lines[:_SHOWN]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if len(lines) > _SHOWN:
        console.print(f"  ... and {len(lines) - _SHOWN} more in the report")


def write_report(audit: Audit, source: Source, folder: Path) -> Path:
    """Write audit.json, contact sheets and audit.html into `folder`, and return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"leakage": audit.leakage, **asdict(audit)}, indent=1)
    (folder / "audit.json").write_text(text + "\n")
    inlined: dict[str, str] = {}
    for title, name, sheet in _sheets(audit, source):
        sheet.save(folder / f"{name}.png", optimize=True)
        inlined[title] = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    environment.filters["shown"] = shown
    page = environment.get_template("audit.html.jinja").render(
        audit=audit,
        sheets=inlined,
        shown=_SHOWN_ON_PAGE,
        contradictions=_contradictions(audit),
        oddities=_oddities(audit),
        near=_near,
        share=_share,
        medians=_medians,
    )
    (folder / "audit.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    return folder / "audit.html"


def _sheets(audit: Audit, source: Source) -> list[tuple[str, str, Image.Image]]:
    """Make the contact sheets: title, file name and image of each; radiographs are sampled evenly from the set."""
    path_of = {r.file: radiograph.path for r, radiograph in zip(audit.files, source.radiographs, strict=True)}
    sheets = []
    for label in LABELS:
        files = [r.file for r in audit.files if r.label == label and r.error is None]
        chosen = np.unique(np.linspace(0, len(files) - 1, _SHEET[0] * _SHEET[1]).astype(int)) if files else ()
        tiles = [(path_of[files[i]], shown(Path(files[i]).stem)) for i in chosen]
        if tiles:
            sheets.append((f"{label}, {len(tiles)} of {len(files)}", label.lower(), contact_sheet(tiles)))
    most = _SHEET[0] * _SHEET[1]
    for title, name, files in (
        ("Perhaps inverted", "inverted", audit.inverted),
        ("Perhaps mirrored", "mirrored", audit.mirrored),
        ("Perhaps no chest, the most novel first", "novel", [file for file, _ in audit.novel]),
    ):
        if files:
            tiles = [(path_of[file], shown(Path(file).stem)) for file in files[:most]]
            sheets.append((f"{title}, {len(tiles)} of {len(files)}", name, contact_sheet(tiles)))
    near = audit.near_duplicates[: _PAIRS_PER_ROW * _SHEET[1]]
    if near:
        tiles = [(path_of[file], f"{c.bits} bits: {shown(Path(file).stem)}") for c in near for file in c.files]
        sheets.append(
            (f"Copies saved anew, {len(near)} of {len(audit.near_duplicates)}", "copies", contact_sheet(tiles))
        )
    return sheets


def contact_sheet(tiles: Sequence[tuple[Path, str]]) -> Image.Image:
    """Arrange radiographs with captions in rows of eight, keeping their aspect ratios."""
    columns = min(_SHEET[0], len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("L", (columns * _TILE, rows * (_TILE + _CAPTION)), 24)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=9)
    for i, (path, caption) in enumerate(tiles):
        left, top = i % columns * _TILE, i // columns * (_TILE + _CAPTION)
        radiograph = read_radiograph(path, at_least=2 * _TILE)
        radiograph.thumbnail((_TILE - 4, _TILE - 4))
        sheet.paste(radiograph, (left + (_TILE - radiograph.width) // 2, top + (_TILE - radiograph.height) // 2))
        draw.text((left + 3, top + _TILE), caption[-26:], fill=200, font=font)
    return sheet


def _oddities(audit: Audit) -> list[tuple[str, list[str]]]:
    """Title and lines of each kind of picture that is unlike the rest."""
    return [
        ("inverted against the rest, perhaps", list(map(shown, audit.inverted))),
        ("mirrored against the rest, perhaps", list(map(shown, audit.mirrored))),
        ("no chest, perhaps", [f"{shown(file)}: novelty {novelty:.2f}" for file, novelty in audit.novel]),
    ]


def _contradictions(audit: Audit) -> list[DuplicateGroup]:
    return [c for c in (*audit.exact_duplicates, *audit.near_duplicates) if c.across_classes]


def _near(copies: DuplicateGroup) -> str:
    return f"{' ~ '.join(map(shown, copies.files))} ({copies.bits} of 256 bits differ)"


def _share(counts: Mapping[str, Mapping[str, int]]) -> float:
    total = sum(n["radiographs"] for n in counts.values())
    return counts[LABELS[1]]["radiographs"] / total if total else 0.0


def _medians(median: Mapping[str, float]) -> str:
    return ", ".join(
        f"{label} {f'{value:,.0f}' if value >= 100 else f'{value:.3g}'}" for label, value in median.items()
    )


def _most(tally: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} ({n})" for name, n in list(tally.items())[:3])
    return shown + (f" and {len(tally) - 3} others" if len(tally) > 3 else "")
