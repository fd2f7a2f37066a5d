"""Files over https into a cache: complete or not there, of bounded size, with size and sha256 on record.

Nothing but https is spoken, after a redirect as before it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Protocol
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from finetune.errors import CheckpointError
from xray_client.console import track

MAX_BYTES = 2 * 2**30  # of one file; MedCLIP's weights are a quarter of that
TIMEOUT_S = 60.0  # without a byte
_CHUNK = 2**20


@dataclass(frozen=True)
class FileFingerprint:
    """What a file is recognised by."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFingerprint:
        """Measure a file."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return cls(path.stat().st_size, digest.hexdigest())


class HttpsOnly(HTTPRedirectHandler):
    """Follows redirects to https and refuses others."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Called with each redirect."""
        require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def https_opener() -> OpenerDirector:
    """What downloads go through unless a caller brings another."""
    return build_opener(HttpsOnly)


def require_https(address: str) -> str:
    """The address, if it is https; `CheckpointError` if not."""
    if not address.startswith("https://"):
        raise CheckpointError(
            "only https is downloaded from", source=address, remedy="check where this address is from"
        )
    return address


def fetch_text(address: str, opener: OpenerDirector, *, limit: int = 2_000) -> str:
    """A short text, stripped; `CheckpointError` if it cannot be had or is longer than `limit` bytes."""
    text = b"".join(_read(address, opener, limit)).decode("utf-8", "replace").strip()
    if not text:
        raise CheckpointError("the answer is empty", source=address)
    return text


def fetch_file(
    address: str, path: Path, opener: OpenerDirector, *, what: str, limit: int = MAX_BYTES
) -> FileFingerprint:
    """Download into `path`. An interrupted download leaves nothing under that name; the next one starts anew.

    Args:
        address: https.
        path: Replaced if it is there.
        opener: Of the connection.
        what: For the progress bar.
        limit: Most bytes that are taken.

    Raises:
        CheckpointError: Not https, not reachable, too large or cut short.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        return write_checked(_read(address, opener, limit, what=what), part, path)
    finally:
        part.unlink(missing_ok=True)


def write_checked(chunks: Iterator[bytes], part: Path, path: Path) -> FileFingerprint:
    """Write chunks to `part`, measure them, and give the whole its name."""
    digest, size = hashlib.sha256(), 0
    with part.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
    part.replace(path)
    return FileFingerprint(size, digest.hexdigest())


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def bounded_chunks(source: _Readable, limit: int, name: str) -> Iterator[bytes]:
    """Chunks of a stream that may not hold more than `limit` bytes, whatever it says of itself."""
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise CheckpointError(f"larger than {limit:,} bytes", source=name)
        yield chunk


def _read(address: str, opener: OpenerDirector, limit: int, *, what: str = "") -> Iterator[bytes]:
    require_https(address)
    try:
        with opener.open(Request(address, headers={"User-Agent": "medclip-triton"}), timeout=TIMEOUT_S) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            if length > limit:
                raise CheckpointError(f"{length:,} bytes, larger than {limit:,}", source=address)
            received = 0
            chunks = bounded_chunks(answer, limit, address)
            for chunk in track(chunks, what, total=-(-length // _CHUNK) or None) if what else chunks:
                received += len(chunk)
                yield chunk
            if length and received < length:
                raise CheckpointError(
                    f"cut short at {received:,} of {length:,} bytes", source=address, remedy="try again"
                )
    except (OSError, HTTPException) as err:  # URLError and time-outs are OSErrors
        raise CheckpointError(
            f"cannot be downloaded: {err}",
            source=address,
            remedy="download it by hand, on another machine if need be, and give its path",
        ) from err
