"""`xray-client health` and `info`."""

from __future__ import annotations

import json

import click

from xray_client._client import XrayClient

from .options import server_options
from .writers import printable


@click.command(short_help="Say whether an image would be classified now.")
@server_options
def health(client: XrayClient) -> None:
    """Say whether the server would classify an image now; exit code 0 where it would, else 3."""
    client.check()
    click.echo(f"ready: {client.model} at {client.url}")


@click.command(short_help="Show the served model: versions, preprocessing, tensors, model card.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@server_options
def info(client: XrayClient, form: str) -> None:
    """Show the served model: versions, preprocessing, tensors, operating point, figures, and what it is not for."""
    told = client.info()
    if form == "json":
        click.echo(json.dumps(told.to_dict()))
        return
    lines = [
        ("model", told.model),
        ("versions", ", ".join(told.versions)),
        ("platform", told.platform),
        ("server", told.server),
        ("preprocessing", told.preprocessing.to_json()),
        *(("input", f"{tensor.name} {tensor.datatype} {list(tensor.shape)}") for tensor in told.inputs),
        *(("output", f"{tensor.name} {tensor.datatype} {list(tensor.shape)}") for tensor in told.outputs),
        *((name.replace("_", " "), value) for name, value in told.parameters),
        *(told.card.rows() if told.card else ()),
    ]
    for name, value in lines:
        first, *more = value.splitlines() or [""]
        click.echo(f"{printable(name):<15} {printable(first)}".rstrip())
        for line in more:
            click.echo(f"{'':<15} {printable(line)}".rstrip())
