"""The manual names everything that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

import xray_client
from xray_client import XrayError
from xray_client.cli.main import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
MANUAL = (DOCS / "client.md").read_text(encoding="utf-8")
API = (DOCS / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted({*xray_client.__all__} - {"__version__"}))
def test_every_public_name_is_on_the_page_of_the_api(name: str) -> None:
    assert f"::: xray_client.{name}\n" in API


def test_every_error_is_in_the_table() -> None:
    errors = [value for value in vars(xray_client).values() if isinstance(value, type) and issubclass(value, XrayError)]
    assert len(errors) == 22
    for error in errors:
        assert f"`{error.__name__}`" in MANUAL


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_is_described_with_its_options(name: str) -> None:
    assert f"**{name}**" in MANUAL or f"xray-client {name}" in MANUAL
    for parameter in main.commands[name].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--"):
                assert option in MANUAL, option


def test_every_variable_of_the_environment_is_named() -> None:
    variables = {parameter.envvar for command in main.commands.values() for parameter in command.params}
    for variable in variables - {None}:
        assert f"`{variable}`" in MANUAL or variable.startswith("XRAY_TLS_")
