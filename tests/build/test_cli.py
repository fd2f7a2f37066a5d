"""`xray-build` as a whole: the list of its commands."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from xray_build.cli import main


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_command_of_the_list_is_there_and_explains_itself(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert f"main {name} [OPTIONS]" in done.output
    assert f"\n  {name} " in CliRunner().invoke(main, ["--help"]).output


def test_another_name_is_a_usage_error() -> None:
    done = CliRunner().invoke(main, ["nonsense"])
    assert done.exit_code == 2
    assert "No such command 'nonsense'" in done.output
