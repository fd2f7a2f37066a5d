"""JSON from files and servers that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Parse JSON as `json.loads` does.

    Raises:
        ValueError: The text is no JSON, or is nested too deeply, for which `json.loads` has another error.
    """
    try:
        return json.loads(text)
    except RecursionError as err:
        raise ValueError("JSON that is nested too deeply") from err
