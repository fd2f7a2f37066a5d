"""`xray-client health` and `info`."""

from __future__ import annotations

import json

import click

from xray_client._client import XrayClient

from .options import server_options
from .writers import printable


@click.command(short_help="Check that the server is ready.")
@server_options
def health(client: XrayClient) -> None:
    """Check that the server is ready to classify: exit code 0 if it is, 3 if not."""
    client.check()
    click.echo(f"ready: {client.model} at {client.url}")


@click.command(short_help="Show the served model and its model card.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True,
              help="Output format.")  # fmt: skip
@server_options
def info(client: XrayClient, form: str) -> None:
    """Show the served model: versions, preprocessing, tensors, and its model card.

    The card has the operating point, calibration, training data, figures of its evaluation and excluded uses.
    """
    model = client.info()
    if form == "json":
        click.echo(json.dumps(model.to_dict()))
        return
    lines = [
        ("model", model.model),
        ("versions", ", ".join(model.versions)),
        ("platform", model.platform),
        ("server", model.server),
        ("preprocessing", model.preprocessing.to_json()),
        *(("input", f"{tensor.name} {tensor.datatype} {list(tensor.shape)}") for tensor in model.inputs),
        *(("output", f"{tensor.name} {tensor.datatype} {list(tensor.shape)}") for tensor in model.outputs),
        *((name.replace("_", " "), value) for name, value in model.parameters),
        *(model.card.rows() if model.card else ()),
    ]
    for name, value in lines:
        first, *more = value.splitlines() or [""]
        click.echo(f"{printable(name):<15} {printable(first)}".rstrip())
        for line in more:
            click.echo(f"{'':<15} {printable(line)}".rstrip())
