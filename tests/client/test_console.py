"""The shared parts of the command lines: errors in one line, and commands that name the extra they need."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.table import Table

from xray_client import Preprocessing, PreprocessingMismatch, XrayError
from xray_client.console import LazyCommand, LazyGroup, console, needs_extra, plain_errors
from xray_client.parsing import parse_json

GROUP = {
    "there": LazyCommand("lazy_there:command", "Say hello.", extra="build"),
    "lacking": LazyCommand("lazy_lacking:command", "Needs a package.", extra="build"),
    "broken": LazyCommand("lazy_broken:command", "Has a bug.", extra="build"),
}


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> click.Group:
    """Three commands: one that works, one whose module imports what is not installed, and one with a mistake."""
    heading = "import click\n@click.command()\ndef command():\n    click.echo('hello')\n"
    for name, text in (
        ("there", heading),
        ("lacking", "import no_such_package.inner\n" + heading),
        ("broken", "import xray_client.no_such_module\n" + heading),
    ):
        (tmp_path / f"lazy_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return LazyGroup("tool", lazy=GROUP)


def test_a_group_lists_its_commands_without_importing_them(group: click.Group) -> None:
    shown = CliRunner().invoke(group, ["--help"]).output
    assert "there    Say hello.\n" in shown
    assert "lacking  Needs a package.\n" in shown
    assert not [name for name in sys.modules if name.startswith("lazy_")]


def test_a_command_is_imported_when_it_is_called(group: click.Group) -> None:
    assert CliRunner().invoke(group, ["there"]).output == "hello\n"


def test_a_command_whose_package_is_missing_names_the_extra_in_one_line(group: click.Group) -> None:
    for words in (["lacking"], ["lacking", "--help"]):
        done = CliRunner().invoke(group, words)
        assert done.exit_code == 1
        assert done.output == (
            "Error: tool lacking needs no_such_package, which is not installed: pip install 'medclip-triton[build]'\n"
        )


def test_a_missing_module_of_the_project_is_a_bug_and_keeps_its_trace(group: click.Group) -> None:
    assert isinstance(CliRunner().invoke(group, ["broken"]).exception, ModuleNotFoundError)


def test_an_error_of_the_project_is_one_line_and_any_other_passes() -> None:
    with pytest.raises(click.ClickException, match="gone") as caught, plain_errors():
        raise XrayError("gone", remedy="start it")
    assert caught.value.message == "gone (start it)"
    with pytest.raises(ZeroDivisionError), plain_errors(), needs_extra("build", "it"):
        _ = 1 / 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), "runs/a: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device"),
    ],
)
def test_what_the_system_refuses_is_one_line(error: Exception, words: str) -> None:
    with pytest.raises(click.ClickException) as caught, plain_errors():
        raise error
    assert caught.value.message == words


@pytest.mark.parametrize("error", [OSError("a library's own"), RuntimeError("a bug"), BrokenPipeError(errno.EPIPE, "")])
def test_an_error_without_a_number_of_the_system_is_a_bug(error: Exception) -> None:
    with pytest.raises(type(error)), plain_errors():
        raise error


def test_nothing_that_is_printed_is_taken_for_markup() -> None:
    with console.capture() as printed:
        console.print("a [red] folder [/nowhere]")
        table = Table("[bold]")
        table.add_row("[/]")
        console.print(table)
    assert "a [red] folder [/nowhere]" in printed.get()
    assert "[/]" in printed.get()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", b"\xff"])
def test_json_that_is_none_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    if isinstance(text, str):
        with pytest.raises(PreprocessingMismatch):
            Preprocessing.from_json(text)
