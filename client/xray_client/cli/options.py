"""What the commands share: exit codes, the options of the server, the configuration file, errors in one line."""

from __future__ import annotations

import configparser
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from xray_client._client import DEFAULT_TIMEOUT, DEFAULT_URL, XrayClient
from xray_client._config import LONGEST_TIMEOUT, TLS
from xray_client._exceptions import XrayError
from xray_client.contract import MODEL_NAME

from .writers import printable

ANSWERED, IMAGES_FAILED, USAGE, SERVER_TROUBLE, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = """\b
Exit codes:
  0    every image was answered
  1    some images failed: the rest was answered
  2    the command line was not understood
  3    the server could not be used, or failed for some images
  130  interrupted
"""
_SERVER_SECTION = "server"


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(printable(text), err=True)


def security_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a secure connection; the command is called with `tls`, `token` and `headers`."""

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
                     help="Further header, such as those of Triton's restricted protocols; repeatable. VALUE may be "
                          "@FILE: a command line can be read by others."),
        click.option("--token-file", type=path, envvar="XRAY_TOKEN_FILE", show_envvar=True,
                     help="File with the bearer token, read again once a minute; or the token itself in the "
                          "variable XRAY_TOKEN. Sent over TLS or to this machine only."),
        click.option("--tls-server-name", default="", envvar="XRAY_TLS_SERVER_NAME", show_envvar=True,
                     help="Name that the servers' certificates hold, where it is not the host in --url."),
        click.option("--tls-key", type=path, envvar="XRAY_TLS_KEY", show_envvar=True,
                     help="Private key of --tls-cert, PEM."),
        click.option("--tls-cert", type=path, envvar="XRAY_TLS_CERT", show_envvar=True,
                     help="This client's certificate, PEM, for a server that asks for one."),
        click.option("--tls-ca", type=path, envvar="XRAY_TLS_CA", show_envvar=True,
                     help="Certificates of the authorities that the server's may come from, PEM."),
        click.option("--tls/--no-tls", default=None, envvar="XRAY_TLS", show_envvar=True,
                     help="Whether the connection is secured.  [default: where one of the others is given]"),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the server; the command is called with the client that they describe."""

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
            )
        except ValueError as err:
            raise click.UsageError(str(err)) from err
        try:
            with client:
                command(client, **options)
        except XrayError as err:
            say(f"xray-client: {err}")
            sys.exit(SERVER_TROUBLE)
        except KeyboardInterrupt:
            say("xray-client: interrupted")
            sys.exit(INTERRUPTED)

    wrapped = security_options(connected)
    for option in (
        click.option("--attempt-timeout", type=click.FloatRange(0, LONGEST_TIMEOUT, min_open=True),
                     help="Seconds after which a server that does not answer is given up on and another asked.  "
                          "[default: a share of what is left of --timeout]"),
        click.option("--timeout", type=click.FloatRange(0, LONGEST_TIMEOUT, min_open=True), default=DEFAULT_TIMEOUT,
                     show_default=True, help="Seconds that one image may take, reading it and retries included."),
        click.option("--model-version", default="", help="Version to ask for; the server chooses where none is given."),
        click.option("--model", default=MODEL_NAME, show_default=True, help="Name of the served model."),
        click.option("--url", envvar="XRAY_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
                     help="host:port of Triton's gRPC service; several as host1:8001,host2:8001 or dns:///name:8001."),
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
            raise click.UsageError("--header wants NAME=VALUE, or NAME=@FILE")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text().strip()
            except (OSError, ValueError) as err:
                raise click.UsageError(f"--header {name}: {getattr(err, 'strerror', None) or err}") from err
        found[name.strip().lower()] = value
    return found


def default_config() -> Path:
    """Where the configuration file lies unless another is named."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "xray-client.ini"


def read_config(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    """Take the options that a configuration file gives for those that the command line leaves out.

    [server] holds the options of the server; [classify], [watch] and so on those of one command.
    """
    file = value or default_config()
    if value is None and not file.is_file():
        return
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text())
    except (OSError, ValueError, configparser.Error) as err:
        raise click.UsageError(f"{file}: {' '.join(str(getattr(err, 'strerror', None) or err).split())}") from err
    commands = context.command.commands if isinstance(context.command, click.Group) else {}
    known = {name: {p.name for p in command.params if p.name != "paths"} for name, command in commands.items()}
    everywhere = known["health"]  # has no others
    defaults: dict[str, dict[str, Any]] = {name: {} for name in known}
    for section in parser.sections():
        for option, text in parser[section].items():
            name = {"format": "form", "header": "headers"}.get(option, option.replace("-", "_"))
            if name not in (everywhere if section == _SERVER_SECTION else known.get(section, ())):
                raise click.UsageError(f"{file}: [{section}] {option} is not an option of xray-client")
            setting: Any = text.split() if name == "headers" else text
            for command in known if section == _SERVER_SECTION else (section,):
                if name in known[command]:
                    defaults[command][name] = setting
    context.default_map = defaults
