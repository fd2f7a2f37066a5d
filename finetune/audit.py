"""Audit a set of radiographs before training on it: its content, leakage, shortcuts and damage.

    python -m finetune.audit --data chest_xray
    python -m finetune.audit --data radiographs.csv --out runs/audit --strict

Accepts the same `--data` as `finetune.run`. Writes OUT/audit.html (self-contained), audit.json and contact sheets, and
prints a summary. It looks for

Leakage:   a radiograph, a near duplicate of it, or its patient in two splits. Training removes these from the training
           split by itself; metrics computed elsewhere may include them.
Shortcuts: properties of the file, such as image size, aspect ratio or file size, that separate the classes. A model may
           learn them. Each is scored by its AUROC alone.
Damage:    files that cannot be read or are flat, carry both labels or name no patient.
Oddities:  pictures unlike the rest, for people to look at: inverted, mirrored, and by the reference model's novelty no
           chest. --no-reference leaves out the last two, which take minutes for a set of thousands.

The exit code is 0 whatever the result; with --strict it is 1 if there is leakage.
"""

from __future__ import annotations

from pathlib import Path

import click

from xray_client import RESEARCH_USE
from xray_client.console import plain_errors, signals_interrupt

from .command_line import setting
from .data.audit import audit
from .data.labels import LabelNames
from .data.sources import find_radiographs
from .reports.audit import show, write_report
from .settings import DataSettings


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of radiographs, table (CSV), or pneumoniamnist[:28|64|128|224].",
)
@setting(DataSettings, "labels")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/audit"), help="Folder for the report.")
@click.option(
    "--reference/--no-reference",
    default=True,
    help="Look with the reference model for mirrored pictures and for those that are no chest.",
)
@click.option("--strict", is_flag=True, help="Exit with code 1 if there is leakage.")
def main(data: Path, labels: str | None, out: Path, reference: bool, strict: bool) -> None:
    """Run the command line."""
    with plain_errors(), signals_interrupt():
        source = find_radiographs(data, labels=LabelNames.parse(labels))
        traits = None
        if reference:
            from .evaluation.traits import ReferenceTraits  # torch takes seconds

            traits = ReferenceTraits()
        found = audit(source, traits)
        show(found)
        click.echo(f"report: {write_report(found, source, out)}")
        click.echo(RESEARCH_USE)
    if strict and found.leakage:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
