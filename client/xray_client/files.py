"""Safe file writes: nothing of others is destroyed, and every reader finds the old content or the new, whole."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ._exceptions import OutputRefused

# Bytes of an existing file that tell who wrote it.
_HEAD = 4096
_ANOTHER = "name another file, or remove this one first"


def check_output(
    path: str | os.PathLike[str],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    ours: Callable[[bytes], bool] = lambda head: False,
) -> None:
    """Refuse to write where something of others would be destroyed; a new or an empty file is always fine.

    Args:
        path: The file that is to be written or replaced.
        inputs: Files that are read for it.
        ours: Tells from the first 4096 bytes of an existing file if this project wrote it, so that it may be replaced.

    Raises:
        OutputRefused: It is one of the inputs, a folder, a link, a device, or a file that is not recognised.

    Example:
        >>> check_output("report.html", inputs=["chest.png"], ours=lambda head: b'content="xray-client"' in head)
    """
    name = os.fspath(path)
    try:
        found = os.lstat(name)
    except OSError:
        return  # nothing there, or nothing that can be reached: writing it says why
    except ValueError as err:  # a zero byte
        raise OutputRefused(str(err), remedy="name another file", source=name) from err
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
        what = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise OutputRefused(f"this is {what}, and is not written to", remedy="name a file", source=name)
    if any(_is_same(found, each) for each in inputs):
        raise OutputRefused("this file is an input, and is not overwritten", remedy="name another file", source=name)
    try:
        with Path(name).open("rb") as file:
            head = file.read(_HEAD)
    except OSError as err:
        raise OutputRefused(f"cannot be read: {err.strerror or err}", remedy=_ANOTHER, source=name) from err
    if head and not ours(head):
        raise OutputRefused("this file is not an earlier one of the same kind", remedy=_ANOTHER, source=name)


def _is_same(found: os.stat_result, path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(found, os.stat(path))  # noqa: PTH116 - also for names in no encoding
    except (OSError, ValueError):
        return False


def write_atomically(path: Path, content: str | bytes) -> bool:
    """Write a file in one step and flush it to disk; missing folders are made.

    Returns:
        True if the file was written, False if it already had this content.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return False
    replace_by_staged(path, stage_beside(path, data))
    return True


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Let a library write a file in one step: yield a hidden path beside it, which replaces it at the end.

    An exception in the block removes the unfinished file and leaves what was there.

    Args:
        path: The file to write; its folder must exist.
        durable: Flush to disk before the file appears; False where a crash of the machine may lose it.

    Example:
        >>> with replacing(Path("roc.png")) as unfinished:  # doctest: +SKIP
        ...     figure.savefig(unfinished, format="png")
    """
    unfinished = _hidden(path)
    try:
        yield unfinished
        if durable:
            sync(unfinished)
        unfinished.replace(path)
        if durable:
            sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replace: bool = False, durable: bool = True) -> Iterator[Path]:
    """Make a folder in one step: yield an empty hidden folder beside it, which gets the name at the end.

    An exception in the block removes it with everything in it.

    Args:
        path: The folder to make; an empty folder of that name is replaced.
        replace: Replace a folder that is not empty as well, moved aside first and deleted last. Files that others have
            open in it stay readable to them.
        durable: Flush every file to disk before the folder appears; False where a crash of the machine may lose some.

    Raises:
        OSError: Something else has the name, or the disk is full.
    """
    unfinished, retired = _hidden(path), _hidden(path)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if durable:
            for inner in (*unfinished.rglob("*"), unfinished):
                sync(inner)
        if replace and path.is_dir():
            path.rename(retired)
        try:
            unfinished.replace(path)
        except BaseException:
            if retired.exists():
                retired.rename(path)
            raise
        if durable:
            sync(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def stage_beside(path: Path, data: bytes) -> Path:
    """Write the future content of a file into a hidden file beside it, so that a full disk is noticed now.

    Returns:
        The hidden file, for `replace_by_staged`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")
    try:
        staged.write_bytes(data)
        sync(staged)
    except OSError:
        with suppress(OSError):
            staged.unlink()
        raise
    return staged


def replace_by_staged(path: Path, staged: Path) -> None:
    """Put a staged file in place."""
    staged.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hash a file in pieces, so that a large one does not fill the memory; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
