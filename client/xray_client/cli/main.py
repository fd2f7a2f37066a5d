"""Command line `xray-client`; each command has a module beside this one."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import click

from .bench import bench
from .classify import classify
from .doctor import doctor
from .info import health, info
from .options import EXIT_CODES, default_config, read_config
from .watch import watch


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EXIT_CODES)
@click.version_option(package_name="medclip-triton", prog_name="xray-client")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), envvar="XRAY_CONFIG", show_envvar=True,
              is_eager=True, expose_value=False, callback=read_config,
              help=f"Configuration file (INI); see docs/client.md.  [default: {default_config()}]")  # fmt: skip
def main() -> None:
    """Classify chest radiographs on a Triton server: Normal, Pneumonia or Uncertain.

    Research use only. Not a medical device.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may not be encodable
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"pydicom\.")  # they quote elements of the patient


@main.command(short_help="Print the shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Activate it in the current shell with:
      eval "$(xray-client completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(main, {}, "xray-client", "_XRAY_CLIENT_COMPLETE").source())


for _command in (classify, watch, health, info, bench, doctor):
    main.add_command(_command)
