"""Settings files for `--config`: YAML or JSON with the names of the options, or settings.json of a run.

epochs: 7
tower-learning-rate: 0.00035
model: medclip-lite
"""

from __future__ import annotations

from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from xray_client.parsing import parse_json

from .errors import SettingsError
from .options import check, kinds, option_of
from .run_folder import SETTINGS_FILE
from .settings import groups


def read_settings(path: Path) -> dict[str, Any]:
    """Read values by field name from a YAML or JSON file, or from the settings.json of a run folder.

    Names are those of the fields or of the options, with hyphens or underscores.

    Raises:
        SettingsError: The file cannot be read, has a name that is not known, or a value that is not allowed.
    """
    file = path / SETTINGS_FILE if path.is_dir() else path
    try:
        values = _parse(file)
    except (OSError, ValueError) as err:
        raise SettingsError(f"cannot be read as settings: {err}", source=str(file)) from err
    if not isinstance(values, dict):
        raise SettingsError("holds no settings by name", source=str(file), remedy="write lines such as `epochs: 7`")
    owners = {name: (settings, name) for settings in groups().values() for name in kinds(settings)}
    owners |= {
        declared.flag: (settings, name)
        for settings, name in owners.copy().values()
        if (declared := option_of(settings, name)).flag
    }
    found: dict[str, Any] = {}
    for key, value in values.items():
        known = str(key).replace("-", "_")
        if known not in owners:
            near = get_close_matches(known, owners, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else "see --help-all for what is known"
            raise SettingsError(f"unknown setting {str(key)!r}", source=str(file), remedy=remedy)
        settings, name = owners[known]
        kind = kinds(settings)[name]
        if kind.many and isinstance(value, str):
            value = [value]
        if kind.base is float and isinstance(value, str):
            with suppress(ValueError):  # `check` says what it must be
                value = float(value)  # YAML reads 1e-3, which has no point, as a text
        try:
            check(settings, name, value)
        except SettingsError as err:
            raise SettingsError(err.message, source=str(file)) from err
        found[name] = value
    return found


def _parse(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return parse_json(text)
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ValueError(" ".join(str(err).split())) from err
