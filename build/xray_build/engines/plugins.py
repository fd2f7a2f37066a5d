"""What reads checkpoints and labelled radiographs for a build, found by its entry point: imports point the other way.

`finetune` announces itself in the group `xray_build`; another trainer may do the same:

    model(named)                              -> `pipeline.Buildable`
    labelled(source, splits, preprocessing)   -> `int8.Labelled`
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from .runtime import UnavailableError


def plugin(name: str) -> Any:
    """The function of that name.

    Raises:
        UnavailableError: Nobody offers it, or what offers it cannot be imported.
    """
    for point in entry_points(group="xray_build", name=name):
        try:
            return point.load()
        except ImportError as err:
            raise UnavailableError(
                f"checkpoints cannot be read here: {err}", remedy='pip install "medclip-triton[train]"'
            ) from err
    raise UnavailableError("nothing here reads checkpoints", remedy='pip install "medclip-triton[train]"')
