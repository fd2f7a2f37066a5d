"""Downloads over https only, redirects included, of bounded size; a file appears complete or not at all.

Pooch was considered: its downloader follows redirects to http and has no limit of size, so that both checks would stay
here as a downloader of our own, and Pooch would contribute the temporary file alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Protocol
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from finetune.errors import CheckpointError
from xray_client.console import track
from xray_client.files import replacing, sha256

MAX_BYTES = 2 * 2**30  # largest accepted file; MedCLIP's weights are a quarter of that
TIMEOUT_S = 60.0  # longest wait for the next bytes
_CHUNK = 2**20


@dataclass(frozen=True)
class FileFingerprint:
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFingerprint:
        """Measure a file."""
        return cls(path.stat().st_size, sha256(path))


class HttpsOnly(HTTPRedirectHandler):
    """Redirect handler that follows redirects to https and refuses others."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Check the target of a redirect."""
        require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def https_opener() -> OpenerDirector:
    """Build the opener that downloads use by default."""
    return build_opener(HttpsOnly)


def require_https(address: str) -> str:
    """Return the address; raise `CheckpointError` unless it is https."""
    if not address.startswith("https://"):
        raise CheckpointError("downloads must use https", source=address, remedy="check where this address is from")
    return address


def fetch_text(address: str, opener: OpenerDirector, *, limit: int = 2_000) -> str:
    """Download a short text and strip it; raise `CheckpointError` if it fails or exceeds `limit` bytes."""
    text = b"".join(_read(address, opener, limit)).decode("utf-8", "replace").strip()
    if not text:
        raise CheckpointError("the response is empty", source=address)
    return text


def fetch_file(
    address: str, path: Path, opener: OpenerDirector, *, description: str, limit: int = MAX_BYTES
) -> FileFingerprint:
    """Download a file. An interrupted download leaves nothing under its name; the next one starts again.

    Args:
        address: Address, https.
        path: File to write; replaced if it exists.
        opener: Opener of the connection.
        description: Label of the progress bar.
        limit: Maximum number of bytes.

    Raises:
        CheckpointError: The address is not https or not reachable, or the file is too large or cut short.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_chunks(_read(address, opener, limit, description=description), path)


def write_chunks(chunks: Iterator[bytes], path: Path) -> FileFingerprint:
    """Write chunks to a file in one step, and measure them."""
    digest, size = hashlib.sha256(), 0
    with replacing(path, durable=False) as unfinished, unfinished.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
    return FileFingerprint(size, digest.hexdigest())


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def bounded_chunks(source: _Readable, limit: int, name: str) -> Iterator[bytes]:
    """Yield chunks of a stream; raise `CheckpointError` after `limit` bytes, whatever length it declares."""
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise CheckpointError(f"larger than {limit:,} bytes", source=name)
        yield chunk


def _read(address: str, opener: OpenerDirector, limit: int, *, description: str = "") -> Iterator[bytes]:
    require_https(address)
    try:
        with opener.open(Request(address, headers={"User-Agent": "medclip-triton"}), timeout=TIMEOUT_S) as response:
            length = int(response.headers.get("Content-Length") or 0)
            if length > limit:
                raise CheckpointError(f"{length:,} bytes, larger than {limit:,}", source=address)
            received = 0
            chunks = bounded_chunks(response, limit, address)
            if description:
                chunks = track(chunks, description, total=-(-length // _CHUNK) or None)
            for chunk in chunks:
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
