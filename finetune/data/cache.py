"""Every radiograph is decoded and prepared once, into a memory-mapped array; epochs never decode.

A cache belongs to one folder and one preprocessing record. Rows are found again by the content of the file (SHA-256),
so added, changed and renamed files cost only their own decoding:

    <cache>/<key>/images.npy     uint8 (n, size, size), memory-mapped
    <cache>/<key>/index.json     per file: name, size, modification time, SHA-256, row (or why it was unreadable)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.errors import DataError
from xray_client import ImageError, Preprocessing, load_radiograph
from xray_client.console import track

from .records import Record, file_name

MAX_UNREADABLE_SHARE = 0.05
_INDEX_VERSION = 1


@dataclass(frozen=True, slots=True)
class Cache:
    """Prepared images of `records`, which leaves the unreadable files out.

    Attributes:
        images: uint8 (rows, size, size), memory-mapped.
        records: The readable records.
        rows: For each record, its row in `images`.
        digests: For each record, the SHA-256 of its file.
        unreadable: (file, reason) of each file left out.
    """

    images: np.ndarray
    records: list[Record]
    rows: np.ndarray
    digests: list[str]
    unreadable: list[tuple[str, str]]


def already_square(records: Sequence[Record], size: int, *, sample: int = 400) -> bool:
    """Whether the images are size x size already: somebody stretched them, and their true shape is lost."""
    step = max(1, len(records) // sample)
    sizes = set()
    for record in records[::step]:
        try:
            with Image.open(record.path) as image:
                sizes.add(image.size)
        except (OSError, Image.DecompressionBombError):
            continue  # `build_cache` reports it
    return sizes == {(size, size)}


def build_cache(records: Sequence[Record], preprocessing: Preprocessing, root: Path, cache: Path) -> Cache:
    """Decode what is not in the cache yet, and open it.

    Args:
        records: What `scan` found below `root`.
        preprocessing: How to prepare; part of the cache's key.
        root: The folder of radiographs; part of the cache's key.
        cache: Folder that holds all caches.

    Raises:
        DataError: More than 5 % of the files are unreadable.
    """
    cache.mkdir(parents=True, exist_ok=True)
    lock = os.open(cache, os.O_RDONLY)
    try:
        # Processes that train together ask for the same radiographs at the same time; the others find them decoded.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build_cache(records, preprocessing, root, cache)
    finally:
        os.close(lock)


def _build_cache(records: Sequence[Record], preprocessing: Preprocessing, root: Path, cache: Path) -> Cache:
    key = hashlib.sha256(f"{root.resolve()}\n{preprocessing.to_json()}".encode()).hexdigest()[:16]
    folder = cache / key
    old_index, old_images = _open(folder)
    by_name = {entry["name"]: entry for entry in old_index}
    row_of = {entry["sha256"]: entry["row"] for entry in old_index if entry["row"] is not None}

    def enter(record: Record) -> tuple[dict[str, Any], np.ndarray | None]:
        """The record's index entry, and its pixels where the cache has them not yet."""
        name = file_name(record.path, root)
        entry: dict[str, Any] = {"name": name, "size": 0, "mtime_ns": 0, "sha256": "", "row": None}
        try:
            status = record.path.stat()
            known = by_name.get(name)
            stamp = (status.st_size, status.st_mtime_ns)
            # What was refused may be readable with a newer reader.
            if known and known["error"] is None and (known["size"], known["mtime_ns"]) == stamp:
                return known, None
            data = record.path.read_bytes()
        except OSError as err:  # a table may name files that are not there
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
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{key}-{os.getpid()}-") as staging:
        # One row a file is an upper bound: identical files share theirs.
        images = np.lib.format.open_memmap(
            Path(staging) / "images.npy", "w+", np.uint8, (len(records), preprocessing.size, preprocessing.size)
        )
        index, used, new_row = [], 0, {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for entry, pixels in track(pool.map(enter, records), "decoding", total=len(records)):
                digest, old_row = entry["sha256"], entry["row"]
                if entry["error"] is None and digest not in new_row:
                    images[used] = pixels if pixels is not None else old_images[old_row]
                    new_row[digest] = used
                    used += 1
                index.append({**entry, "row": new_row.get(digest)})
        images.flush()
        _check_unreadable(index, root)
        (Path(staging) / "index.json").write_text(json.dumps({"version": _INDEX_VERSION, "files": index}))
        del images
        if index != old_index:
            _swap(Path(staging), folder)
    _, opened = _open(folder)
    readable = [i for i, entry in enumerate(index) if entry["row"] is not None]
    return Cache(
        images=opened,
        records=[records[i] for i in readable],
        rows=np.array([index[i]["row"] for i in readable], dtype=int),
        digests=[index[i]["sha256"] for i in readable],
        unreadable=[(entry["name"], entry["error"]) for entry in index if entry["row"] is None],
    )


def _open(folder: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """What an earlier run left; nothing where it is missing, damaged or of another version."""
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["version"] == _INDEX_VERSION:
            return index["files"], np.load(folder / "images.npy", mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return [], np.empty((0,), np.uint8)


def _check_unreadable(index: Sequence[dict[str, Any]], root: Path) -> None:
    bad = [entry for entry in index if entry["error"] is not None]
    if len(bad) > MAX_UNREADABLE_SHARE * len(index):
        first = ", ".join(f"{entry['name']} ({entry['error']})" for entry in bad[:3])
        raise DataError(
            f"{len(bad)} of {len(index)} images are unreadable: {first}{', ...' if len(bad) > 3 else ''}",
            source=str(root),
            remedy=f"at most {MAX_UNREADABLE_SHARE:.0%} may be; export them again or move them away",
        )


def _swap(staging: Path, folder: Path) -> None:
    """Put the new cache in place. A reader that has the old one mapped keeps its pages until it closes them."""
    retired = staging.with_name(staging.name + ".old")
    if folder.exists():
        folder.rename(retired)
    folder.mkdir()
    for name in ("images.npy", "index.json"):
        (staging / name).rename(folder / name)
    shutil.rmtree(retired, ignore_errors=True)


def _remove_abandoned(cache: Path) -> None:
    """Clear what a killed run left half-written."""
    for leftover in cache.glob(".*-*-*"):
        process = leftover.name.split("-")[1]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(leftover, ignore_errors=True)
