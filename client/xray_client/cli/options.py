"""Shared by the commands: exit codes, connection options, configuration file, and errors in one line."""

from __future__ import annotations

import configparser
import functools
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import click

from xray_client._client import DEFAULT_TIMEOUT, DEFAULT_URL, XrayClient
from xray_client._config import LONGEST_TIMEOUT, TLS
from xray_client._exceptions import XrayError
from xray_client.contract import MODEL_NAME

from .writers import printable


class ExitCode(IntEnum):
    """Exit codes of every command."""

    OK = 0
    IMAGES_FAILED = 1
    USAGE = 2
    SERVER_FAILED = 3
    SYSTEM_REFUSED = 4
    INTERRUPTED = 130


EXIT_CODES = """\b
Exit codes:
  0    every image was classified
  1    some images failed; the others were classified
  2    wrong command line
  3    the server could not be reached, or failed for some images
  4    the operating system refused to go on, such as where standard output is full
  130  interrupted
"""
_SERVER_SECTION = "server"


def note(text: str) -> None:
    """Print a line for people on stderr, after the name of the program."""
    click.echo(printable(f"xray-client: {text}"), err=True)


def security_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for TLS, token and headers; the command is called with `tls`, `token` and `headers`.

    Also for other programs that connect to a Triton, such as `xray-build publish --url`.
    """

    @functools.wraps(command)
    def wrapped(
        tls: bool | None,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_server_name: str,
        token_file: Path | None,
        headers: tuple[str, ...],
        **options: Any,
    ) -> None:
        given = tls_ca or tls_cert or tls_key or tls_server_name
        try:
            secured = TLS(tls_ca, tls_cert, tls_key, tls_server_name) if tls or (given and tls is not False) else None
        except ValueError as err:
            raise click.UsageError(str(err)) from err
        command(tls=secured, token=_token(token_file), headers=_headers(headers), **options)

    path = click.Path(dir_okay=False, path_type=Path)
    for option in (
        click.option("--header", "headers", multiple=True, envvar="XRAY_HEADERS", metavar="NAME=VALUE",
                     help="Additional header, such as the key of a restricted protocol of Triton; repeatable. "
                          "NAME=@FILE reads the value from a file, since other users can see a command line."),
        click.option("--token-file", type=path, envvar="XRAY_TOKEN_FILE", show_envvar=True,
                     help="File with the bearer token, read again once a minute; or set XRAY_TOKEN to the token. "
                          "Sent over TLS or to this machine only."),
        click.option("--tls-server-name", default="", envvar="XRAY_TLS_SERVER_NAME", show_envvar=True,
                     help="Host name in the server's certificate, if it is not the host in --url."),
        click.option("--tls-key", type=path, envvar="XRAY_TLS_KEY", show_envvar=True,
                     help="Private key of --tls-cert (PEM)."),
        click.option("--tls-cert", type=path, envvar="XRAY_TLS_CERT", show_envvar=True,
                     help="Client certificate (PEM), for a server that requires mutual TLS."),
        click.option("--tls-ca", type=path, envvar="XRAY_TLS_CA", show_envvar=True,
                     help="CA certificates (PEM) to verify the server with."),
        click.option("--tls/--no-tls", default=None, envvar="XRAY_TLS", show_envvar=True,
                     help="Use TLS, or not.  [default: TLS if any other --tls option is given]"),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def server_options(command: Callable[..., None], *, isolate: bool = False) -> Callable[..., None]:
    """Add the options of the server; the command is called with an `XrayClient` made from them, and `isolate`."""

    @functools.wraps(command)
    def connected(
        url: str,
        model: str,
        model_version: str,
        timeout: float,
        attempt_timeout: float | None,
        tls: TLS | None,
        token: Callable[[], str] | None,
        headers: dict[str, str],
        **options: Any,
    ) -> None:
        try:
            client = XrayClient(
                url,
                model=model,
                model_version=model_version,
                timeout=timeout,
                attempt_timeout=attempt_timeout,
                tls=tls,
                token=token,
                headers=headers,
                isolate=isolate,
            )
        except ValueError as err:
            raise click.UsageError(str(err)) from err
        try:
            with client:
                command(client, **options)
        except XrayError as err:
            note(str(err))
            sys.exit(ExitCode.SERVER_FAILED)
        except KeyboardInterrupt:
            note("interrupted")
            sys.exit(ExitCode.INTERRUPTED)

    wrapped = security_options(connected)
    for option in (
        click.option("--attempt-timeout", type=click.FloatRange(0, LONGEST_TIMEOUT, min_open=True),
                     help="Seconds to wait for one attempt before the request is sent again.  "
                          "[default: a share of what is left of --timeout]"),
        click.option("--timeout", type=click.FloatRange(0, LONGEST_TIMEOUT, min_open=True), default=DEFAULT_TIMEOUT,
                     show_default=True, help="Seconds that one image may take, including reading it and retries."),
        click.option("--model-version", default="",
                     help="Version of the model.  [default: the server's choice, usually the newest]"),
        click.option("--model", default=MODEL_NAME, show_default=True, help="Name of the served model."),
        click.option("--url", envvar="XRAY_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
                     help="Triton's gRPC address, host:port; several: host1:8001,host2:8001 or dns:///name:8001."),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def _token(file: Path | None) -> Callable[[], str] | None:
    if file is not None:
        return file.read_text
    if os.environ.get("XRAY_TOKEN"):
        return lambda: os.environ["XRAY_TOKEN"]
    return None


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator:
            raise click.UsageError("--header must be NAME=VALUE or NAME=@FILE")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text().strip()
            except (OSError, ValueError) as err:
                raise click.UsageError(f"--header {name}: {getattr(err, 'strerror', None) or err}") from err
        found[name.strip().lower()] = value
    return found


def default_config() -> Path | None:
    """Return the path of the configuration file that is read unless --config names another; None without a home."""
    home = os.environ.get("XDG_CONFIG_HOME")
    try:
        return (Path(home) if home else Path.home() / ".config") / "xray-client.ini"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return None


def read_config(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    """Make the options in a configuration file the defaults of the command line.

    The section [server] holds the options of every command; [classify], [watch] and so on those of one.
    """
    file = value or default_config()
    try:
        if file is None or (value is None and not file.is_file()):
            return
    except OSError:  # the home folder is another user's
        return
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text())
    except (OSError, ValueError, configparser.Error) as err:
        raise click.UsageError(f"{file}: {' '.join(str(getattr(err, 'strerror', None) or err).split())}") from err
    commands = context.command.commands if isinstance(context.command, click.Group) else {}
    known = {name: {p.name for p in command.params if p.name != "paths"} for name, command in commands.items()}
    server_options = known["health"]  # it has no others
    defaults: dict[str, dict[str, Any]] = {name: {} for name in known}
    for section in parser.sections():
        for option, text in parser[section].items():
            name = {"format": "form", "header": "headers"}.get(option, option.replace("-", "_"))
            if name not in (server_options if section == _SERVER_SECTION else known.get(section, ())):
                raise click.UsageError(f"{file}: [{section}] {option} is not an option of xray-client")
            setting: Any = text.split() if name == "headers" else text
            for command in known if section == _SERVER_SECTION else (section,):
                if name in known[command]:
                    defaults[command][name] = setting
    context.default_map = defaults
