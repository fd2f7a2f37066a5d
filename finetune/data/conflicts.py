"""Copies of one radiograph that carry both labels: one of them is wrong, and nothing in the pixels says which."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.errors import DataError

from .cache import Cache
from .names import file_name, shown
from .records import LeftOut

_NAMED = 3


def without_conflicts(cache: Cache, root: Path, *, drop: bool) -> tuple[Cache, list[LeftOut]]:
    """Find radiographs with the same prepared pixels and both labels.

    Args:
        cache: Prepared radiographs.
        root: Folder that file names are relative to.
        drop: Leave out all copies of such a radiograph.

    Returns:
        The cache without them, and what was left out.

    Raises:
        DataError: There are some, and `drop` is False.
    """
    pixels = {int(row): hashlib.sha256(cache.images[row]).digest() for row in np.unique(cache.rows)}
    copies: dict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(cache.rows):
        copies[pixels[int(row)]].append(i)
    groups = [group for group in copies.values() if len({cache.radiographs[i].label for i in group}) > 1]
    if not groups:
        return cache, []
    names = [[file_name(cache.radiographs[i].path, root) for i in group] for group in groups]
    if not drop:
        first = "; ".join(" = ".join(shown(name) for name in group) for group in names[:_NAMED])
        raise DataError(
            f"{len(groups)} {'radiograph carries' if len(groups) == 1 else 'radiographs carry'} both labels: "
            f"{first}{'; ...' if len(groups) > _NAMED else ''}",
            source=str(root),
            remedy="remove the wrong copies, or leave out all of them with --conflicts drop",
        )
    conflicting = {i for group in groups for i in group}
    kept = [i for i in range(len(cache.radiographs)) if i not in conflicting]
    smaller = replace(
        cache,
        radiographs=[cache.radiographs[i] for i in kept],
        rows=cache.rows[kept],
        digests=[cache.digests[i] for i in kept],
    )
    return smaller, [LeftOut(name, "copy with both labels") for group in names for name in group]
