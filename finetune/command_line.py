"""Command-line options made from the settings dataclasses, and a help page in groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from .errors import SettingsError
from .options import Checked, Kind, Option, kinds, option_of
from .settings import groups
from .settings_file import read_settings

F = TypeVar("F", bound=Callable[..., Any])
_HELP_ALL = "finetune.help_all"
_METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


class SettingOption(click.Option):
    """Option of a setting: belongs to a group of the help page, and may be left to `--help-all`."""

    def __init__(self, *args: Any, group: str, common: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group, self.common = group, common


class SettingsCommand(click.Command):
    """Command whose help shows its options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group, the rare ones only for `--help-all`."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            heading = "General"
            if isinstance(parameter, SettingOption):
                heading = parameter.group
                if not (parameter.common or ctx.meta.get(_HELP_ALL)):
                    continue
            if record := parameter.get_help_record(ctx):
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def setting(
    settings: type[Checked], name: str, *, default: Any = MISSING, group: str = "", **changed: Any
) -> Callable[[F], F]:
    """Decorator that adds the option of one setting.

    Args:
        settings: The dataclass that declares it.
        name: Name of the field.
        default: Another default than the declared one.
        group: Heading on the help page.
        changed: Parts of the declaration to replace, such as `help`; see `Option`.
    """
    declared, kind = replace(option_of(settings, name), **changed), kinds(settings)[name]
    if default is MISSING:
        default = next(field.default for field in fields(settings) if field.name == name)
    flag = (declared.flag or name).replace("_", "-")
    given: dict[str, Any] = {"required": True} if default is MISSING else {"default": default}
    return click.option(
        f"--{flag}/--no-{flag}" if kind.base is bool else f"--{flag}",
        name,
        cls=SettingOption,
        type=_type(kind, declared),
        metavar=None if declared.choices or kind.base is bool else _METAVARS[kind.base],
        multiple=kind.many,
        help=declared.help,
        group=group,
        common=declared.common,
        **given,
    )


def all_settings(command: F) -> F:
    """Decorator that adds the options of all settings of a run; a name that two groups have is added once."""
    owners: dict[str, tuple[str, type[Checked]]] = {}
    for group, settings in groups().items():
        for name in kinds(settings):
            owners.setdefault(name, (group, settings))
    for name, (group, settings) in reversed(owners.items()):
        command = setting(settings, name, group=group.capitalize())(command)
    return command


def config_option(*names: str, **kwargs: Any) -> Callable[[F], F]:
    """Decorator that adds an option for a settings file, whose values become the defaults of the others."""
    return click.option(*names, type=click.Path(path_type=Path), is_eager=True, callback=_defaults_from, **kwargs)


def help_all_option(command: F) -> F:
    """Decorator that adds `--help-all`."""
    decorate: Callable[[F], F] = click.option(
        "--help-all",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_help_all,
        help="Show all options and exit.",
    )
    return decorate(command)


def _type(kind: Kind, declared: Option) -> click.ParamType[Any] | None:
    if declared.choices:
        return click.Choice(declared.choices)
    if kind.base is bool:
        return None
    if kind.base is Path:
        return click.Path(path_type=Path)
    if kind.base not in (int, float):
        return click.STRING
    limited = click.IntRange if kind.base is int else click.FloatRange
    low = declared.minimum if declared.above is None else declared.above
    high = declared.maximum if declared.below is None else declared.below
    if low is None and high is None:
        return click.INT if kind.base is int else click.FLOAT
    return limited(low, high, min_open=declared.above is not None, max_open=declared.below is not None)  # type: ignore[arg-type]


def _defaults_from(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Take the values of a settings file as defaults, so that the command line overrides them."""
    if path is None:
        return None
    try:
        context.default_map = {**(context.default_map or {}), **read_settings(path)}
    except SettingsError as err:
        raise click.BadParameter(str(err)) from err
    return path


def _help_all(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.meta[_HELP_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()
