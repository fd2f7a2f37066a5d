"""Names of files in lists: written so that any name that the system can hold is read back, and shown on one line.

Linux allows any bytes in a name but `/` and zero. Python holds bytes in no encoding as lone surrogates, which only
`ENCODING_ERRORS` writes and reads.
"""

from __future__ import annotations

from pathlib import Path

ENCODING_ERRORS = "surrogateescape"  # of every table that is written or read


def file_name(path: Path, root: Path) -> str:
    """Return a radiograph's name in written lists: its path relative to `root`, absolute if it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def shown(name: str) -> str:
    r"""Return a name for people: one line, with escapes for what cannot be printed.

    Example:
        >>> shown("M\udcfcller\n.png")
        'M\\xfcller\\n.png'
    """
    return "".join(_shown(character) for character in name)


def _shown(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else repr(character)[1:-1]
