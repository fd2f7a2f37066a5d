"""Readers of checkpoints and labelled radiographs, found by entry point, as `xray_build` must not import `finetune`.

`finetune` registers itself in the group `xray_build`; another trainer may do the same:

    model(named)                              -> `pipeline.Buildable`
    labelled(source, splits, preprocessing)   -> `int8.Labelled`
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from .runtime import UnavailableError


def plugin(name: str) -> Any:
    """Load the function that is registered under this name.

    Raises:
        UnavailableError: No installed package registers it, or the one that does cannot be imported.
    """
    for point in entry_points(group="xray_build", name=name):
        try:
            return point.load()
        except ImportError as err:
            raise UnavailableError(
                f"checkpoints cannot be read here: {err}", remedy='pip install "medclip-triton[train]"'
            ) from err
    raise UnavailableError("no installed package reads checkpoints", remedy='pip install "medclip-triton[train]"')
