"""Look a set of radiographs over before training on it: what is in it, what is broken, what would flatter a model.

    python -m finetune.audit --data chest_xray
    python -m finetune.audit --data radiographs.csv --out runs/audit --strict

Takes whatever `finetune.run` takes. Writes OUT/audit.html (one page, nothing to load), audit.json and contact
sheets, and says the gist on the terminal. Three questions are asked:

Leakage.   Is a radiograph, a copy of it saved anew, or its patient on two sides (training, validation, test)? Training
           takes all of these out of the training side by itself; figures made elsewhere may include them.
Shortcuts. Can the class be told without looking at the radiograph, from image size, aspect ratio or file size? AUROC of
           each alone; a model may learn the same.
Damage.    Which files cannot be read, which are labelled both ways, which carry no patient?

The exit code is 0 whatever is found; with --strict it is 1 when there is leakage.
"""

from __future__ import annotations

from pathlib import Path

import click

from xray_client import RESEARCH_USE
from xray_client.console import plain_errors, signals_interrupt

from .data.audit import audit
from .data.sources import find_radiographs
from .reports.audit import show, write_report


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of radiographs, table (CSV), or pneumoniamnist[:28|64|128|224].",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/audit"), help="Where the report is written.")
@click.option("--strict", is_flag=True, help="Exit with code 1 if there is leakage.")
def main(data: Path, out: Path, strict: bool) -> None:
    """Command line; see the module's text."""
    with plain_errors(), signals_interrupt():
        source = find_radiographs(data)
        found = audit(source)
        show(found)
        click.echo(f"report: {write_report(found, source, out)}")
        click.echo(RESEARCH_USE)
    if strict and found.leakage:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
