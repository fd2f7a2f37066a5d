"""Cache of prepared radiographs: each is decoded once, into a memory-mapped array, and epochs never decode.

A cache belongs to one folder and one `Preprocessing`. Rows are looked up by the content of the file (SHA-256), so
added, changed and renamed files cost only their own decoding:

    <cache>/<key>/images.npy     uint8 (n, size, size), memory-mapped
    <cache>/<key>/index.json     per file: name, size, modification time, SHA-256, row (or why it was unreadable)
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.errors import DataError
from xray_client import ImageError, Preprocessing, load_radiograph
from xray_client.console import track
from xray_client.files import new_folder
from xray_client.parsing import parse_json

from .names import file_name, shown
from .records import Radiograph

MAX_UNREADABLE_SHARE = 0.05
_INDEX_VERSION = 1


@dataclass(frozen=True, slots=True)
class Cache:
    """Prepared images of the readable radiographs.

    Attributes:
        images: uint8 (rows, size, size), memory-mapped.
        radiographs: The readable radiographs.
        rows: int (n,), row in `images` of each radiograph.
        digests: SHA-256 of each radiograph's file.
        unreadable: (file, reason) of each file left out.
    """

    images: npt.NDArray[Any]
    radiographs: list[Radiograph]
    rows: npt.NDArray[Any]
    digests: list[str]
    unreadable: list[tuple[str, str]]


def already_square(radiographs: Sequence[Radiograph], size: int, *, sample: int = 400) -> bool:
    """Return True if all sampled images are size x size, so that they were stretched before and lost their shape."""
    step = max(1, len(radiographs) // sample)
    sizes = set()
    for radiograph in radiographs[::step]:
        try:
            with Image.open(radiograph.path) as image:
                sizes.add(image.size)
        except (OSError, Image.DecompressionBombError):
            continue  # reported by `build_cache`
    return sizes == {(size, size)}


def build_cache(radiographs: Sequence[Radiograph], preprocessing: Preprocessing, root: Path, cache: Path) -> Cache:
    """Decode the radiographs that the cache lacks, and open it.

    Args:
        radiographs: Radiographs below `root`.
        preprocessing: Preprocessing to apply; part of the cache's key.
        root: Folder of the radiographs; part of the cache's key.
        cache: Folder that holds all caches.

    Raises:
        DataError: More than 5 % of the files are unreadable, or the disk has no room for the cache.
    """
    cache.mkdir(parents=True, exist_ok=True)
    lock = os.open(cache, os.O_RDONLY)
    try:
        # Processes that train together need the same radiographs at the same time: one decodes, the others wait. The
        # folder itself is locked, as filelock would leave a file behind in an empty cache.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build_cache(radiographs, preprocessing, root, cache)
    finally:
        os.close(lock)


def _build_cache(radiographs: Sequence[Radiograph], preprocessing: Preprocessing, root: Path, cache: Path) -> Cache:
    key = hashlib.sha256(os.fsencode(f"{root.resolve()}\n{preprocessing.to_json()}")).hexdigest()[:16]
    folder = cache / key
    old_index, old_images = _open(folder)
    by_name = {entry["name"]: entry for entry in old_index}
    row_of = {entry["sha256"]: entry["row"] for entry in old_index if entry["row"] is not None}

    def enter(radiograph: Radiograph) -> tuple[dict[str, Any], npt.NDArray[Any] | None]:
        """Return the radiograph's index entry, and its pixels if the cache lacks them."""
        name = file_name(radiograph.path, root)
        entry: dict[str, Any] = {"name": name, "size": 0, "mtime_ns": 0, "sha256": "", "row": None}
        try:
            status = radiograph.path.stat()
            known = by_name.get(name)
            stamp = (status.st_size, status.st_mtime_ns)
            # Files that were refused are tried again: a newer reader may accept them.
            if known and known["error"] is None and (known["size"], known["mtime_ns"]) == stamp:
                return known, None
            data = radiograph.path.read_bytes()
        except OSError as err:  # a table may name files that do not exist
            return {**entry, "error": err.strerror or str(err)}, None
        entry |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "error": None}
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        if entry["sha256"] in row_of:
            return {**entry, "row": row_of[entry["sha256"]]}, None
        try:
            return entry, load_radiograph(data, preprocessing)[0]
        except ImageError as err:
            return {**entry, "error": err.message}, None

    _remove_abandoned(cache)
    with new_folder(folder, replace=True, durable=False) as staging:
        # One row per file is an upper bound: identical files share a row.
        images = np.lib.format.open_memmap(
            staging / "images.npy", "w+", np.uint8, (len(radiographs), preprocessing.size, preprocessing.size)
        )
        _reserve(staging / "images.npy", cache)
        index, used, new_row = [], 0, {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for entry, pixels in track(pool.map(enter, radiographs), "decoding", total=len(radiographs)):
                digest, old_row = entry["sha256"], entry["row"]
                if entry["error"] is None and digest not in new_row:
                    images[used] = pixels if pixels is not None else old_images[old_row]
                    new_row[digest] = used
                    used += 1
                index.append({**entry, "row": new_row.get(digest)})
        images.flush()
        _check_unreadable(index, root)
        (staging / "index.json").write_text(json.dumps({"version": _INDEX_VERSION, "files": index}))
        del images
    _, opened = _open(folder)
    readable = [i for i, entry in enumerate(index) if entry["row"] is not None]
    return Cache(
        images=opened,
        radiographs=[radiographs[i] for i in readable],
        rows=np.array([index[i]["row"] for i in readable], dtype=int),
        digests=[index[i]["sha256"] for i in readable],
        unreadable=[(entry["name"], entry["error"]) for entry in index if entry["row"] is None],
    )


def _reserve(file: Path, cache: Path) -> None:
    """Take the space of a file that is all holes; a disk that fills up under a memory map kills the process.

    Raises:
        DataError: There is not enough.
    """
    size = file.stat().st_size
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, size)
        except OSError as err:
            if err.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot tell
                return
            free = shutil.disk_usage(cache).free
            raise DataError(
                f"{err.strerror}: the cache needs {size / 2**20:.0f} MiB, and {free / 2**20:.0f} are free",
                source=str(cache),
                remedy="make room, or name another folder with --cache",
            ) from err


def _open(folder: Path) -> tuple[list[dict[str, Any]], npt.NDArray[Any]]:
    """Open an earlier run's cache; empty if it is missing, damaged or of another version."""
    try:
        index = parse_json((folder / "index.json").read_text())
        if index["version"] == _INDEX_VERSION:
            return index["files"], np.load(folder / "images.npy", mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return [], np.empty((0,), np.uint8)


def _check_unreadable(index: Sequence[dict[str, Any]], root: Path) -> None:
    bad = [entry for entry in index if entry["error"] is not None]
    if len(bad) > MAX_UNREADABLE_SHARE * len(index):
        first = ", ".join(f"{shown(entry['name'])} ({entry['error']})" for entry in bad[:3])
        raise DataError(
            f"{len(bad)} of {len(index)} images are unreadable: {first}{', ...' if len(bad) > 3 else ''}",
            source=str(root),
            remedy=f"at most {MAX_UNREADABLE_SHARE:.0%} may be; export them again or remove them",
        )


def _remove_abandoned(cache: Path) -> None:
    """Remove the unfinished folders of killed runs; the lock on `cache` excludes a run that is under way."""
    for leftover in cache.glob(".*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
