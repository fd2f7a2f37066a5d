"""Declaration of options in settings dataclasses: default, range or choices, and help, once for each."""

from __future__ import annotations

import operator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from .errors import SettingsError


@dataclass(frozen=True)
class Option:
    """Declaration of one setting, as an option of the command line and a key of a settings file.

    Attributes:
        help: Text of `--help`; names the unit and the value that turns the setting off.
        flag: Name on the command line where it is not the field's own.
        minimum: Smallest value.
        maximum: Largest value.
        above: Exclusive lower limit, instead of `minimum`.
        below: Exclusive upper limit, instead of `maximum`.
        choices: Allowed texts; empty = any.
        common: Shown by `--help`; the others are shown by `--help-all`.
    """

    help: str
    flag: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    common: bool = False

    def problem(self, value: Any) -> str | None:
        """Reason why a value of the right type is out of range; None = it is not."""
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        limits = (
            (self.minimum, operator.ge, "at least"),
            (self.above, operator.gt, "above"),
            (self.maximum, operator.le, "at most"),
            (self.below, operator.lt, "below"),
        )
        for limit, holds, words in limits:
            if limit is not None and not holds(value, limit):
                return f"must be {words} {limit:g}"
        return None


def option(default: Any = MISSING, *, help: str, **declared: Any) -> Any:
    """Declare a field of a settings dataclass; see `Option` for what can be declared."""
    return field(default=default, metadata={"option": Option(help, **declared)})


@dataclass(frozen=True)
class Kind:
    """Type of a setting: its base type, and if None or several values are allowed."""

    base: type
    optional: bool = False
    many: bool = False


def kinds(settings: type[Checked]) -> dict[str, Kind]:
    """Type of each field of a settings dataclass."""
    found = {}
    for name, hint in get_type_hints(settings).items():
        if get_origin(hint) is tuple:
            found[name] = Kind(get_args(hint)[0], many=True)
        elif type(None) in get_args(hint):
            found[name] = Kind(next(kind for kind in get_args(hint) if kind is not type(None)), optional=True)
        else:
            found[name] = Kind(hint)
    return found


@dataclass(frozen=True)
class Checked:
    """Base of the settings dataclasses: checks types and ranges when one is made."""

    def __post_init__(self) -> None:
        for declared in fields(self):
            check(type(self), declared.name, getattr(self, declared.name))


def check(settings: type[Checked], name: str, value: Any) -> None:
    """Check a value for a field of a settings dataclass.

    Raises:
        SettingsError: The value has another type or is out of range.
    """
    kind, declared = kinds(settings)[name], option_of(settings, name)
    if value is None and kind.optional:
        return
    if kind.many and not isinstance(value, list | tuple):
        raise SettingsError(f"{name} must be a list, not {value!r}")
    for single in value if kind.many else (value,):
        accepted: tuple[type, ...] = {float: (int, float), Path: (str, Path)}.get(kind.base, (kind.base,))
        if not isinstance(single, accepted) or (isinstance(single, bool) and kind.base is not bool):
            words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
            raise SettingsError(f"{name} must be {words[kind.base]}, not {single!r}")
        if problem := declared.problem(single):
            raise SettingsError(f"{name} {problem}, not {single!r}")


def option_of(settings: type[Checked], name: str) -> Option:
    """Declaration of a field of a settings dataclass."""
    declared: Option = next(entry for entry in fields(settings) if entry.name == name).metadata["option"]
    return declared
