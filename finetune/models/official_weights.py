"""Download of MedCLIP's official weights: addresses, packing and checksums.

MedCLIP's pages give the address of a zip that holds `pytorch_model.bin`. Bio_ClinicalBERT's vocabulary is downloaded
from its own repository. Both are kept in one folder of the cache, with their sizes and hashes.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from urllib.request import OpenerDirector

from finetune.errors import CheckpointError
from xray_client.console import console
from xray_client.files import replacing
from xray_client.parsing import parse_json

from .download import MAX_BYTES, FileFingerprint, bounded_chunks, fetch_file, fetch_text, require_https, write_chunks

WEIGHTS_NAME, VOCABULARY_NAME, PROVENANCE_NAME = "pytorch_model.bin", "vocab.txt", "provenance.json"
VOCABULARY_ADDRESS = "https://huggingface.co/emilyalsentzer/Bio_ClinicalBERT/resolve/main/vocab.txt"
# Reported by third parties, so a mismatch is a warning, not an error. The vocabulary is that of BERT's cased models.
REPORTED = {
    "medclip-vit.zip": FileFingerprint(506_392_441, "414b3ac515431c06018400ab2d83ee7307e314020cd4f6babbfdea4a58515725"),
    "medclip-vit": FileFingerprint(546_888_925, "07bf9f917ccce482ea30ec84e533a30c3ad395c424d3624f6b72edf8484f8126"),
    VOCABULARY_NAME: FileFingerprint(213_450, "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"),
}


def cache_folder() -> Path:
    """Return the folder for downloads: `$XDG_CACHE_HOME/medclip-triton`, or under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medclip-triton"


def download_official(architecture: str, cache: Path, opener: OpenerDirector) -> tuple[Path, str]:
    """Download weights and vocabulary unless the cache holds them; return the path of the weights and their address."""
    folder = cache / architecture
    weights, provenance_path = folder / WEIGHTS_NAME, folder / PROVENANCE_NAME
    if not provenance_path.is_file():
        _fetch(architecture, folder, opener)
    try:
        provenance = parse_json(provenance_path.read_text())
        kept = {name: FileFingerprint(**provenance["files"][name]) for name in (WEIGHTS_NAME, VOCABULARY_NAME)}
        intact = all(FileFingerprint.of(folder / name) == known for name, known in kept.items())
        address = str(provenance["address"])
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise CheckpointError(
            "the downloaded files do not match their recorded checksums",
            source=str(folder),
            remedy="delete this folder, and they are downloaded again",
        )
    return weights, address


def _fetch(architecture: str, folder: Path, opener: OpenerDirector) -> None:
    """Download, unpack and record; the provenance is written last, so that a folder without it is incomplete."""
    import medclip.constants as constants

    pages = {
        "medclip-vit": constants.PRETRAINED_URL_MEDCLIP_VIT,
        "medclip-resnet": constants.PRETRAINED_URL_MEDCLIP_RESNET,
    }
    # Small files first: if one fails, nobody has waited for half a gigabyte.
    vocabulary = fetch_file(
        VOCABULARY_ADDRESS, folder / VOCABULARY_NAME, opener, description="downloading the vocabulary", limit=2**21
    )
    # The page contains only the address of the zip.
    address = require_https(fetch_text(pages[architecture], opener))
    archive = folder / f".{os.getpid()}.zip"  # processes that train together may download at the same time
    try:
        packed = fetch_file(address, archive, opener, description=f"downloading {architecture}")
        unpacked = unzip_weights(archive, folder / WEIGHTS_NAME)
    finally:
        archive.unlink(missing_ok=True)
    zip_name = f"{architecture}.zip"
    files = {zip_name: packed, WEIGHTS_NAME: unpacked, VOCABULARY_NAME: vocabulary}
    for name, key in ((zip_name, zip_name), (WEIGHTS_NAME, architecture), (VOCABULARY_NAME, VOCABULARY_NAME)):
        if key in REPORTED and files[name] != REPORTED[key]:
            console.print(
                f"{folder / name}: {files[name].bytes:,} bytes, sha256 {files[name].sha256}: differs from the checksum "
                "that others report; it is used nevertheless",
                style="yellow",
            )
    provenance = {"address": address, "files": {name: asdict(file) for name, file in files.items()}}
    with replacing(folder / PROVENANCE_NAME) as unfinished:
        unfinished.write_text(json.dumps(provenance, indent=2) + "\n")


def holds_weights_file(path: Path) -> bool:
    """Return True for the official zip; files saved by torch are zips as well, but hold a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
    except OSError as err:
        raise CheckpointError(f"cannot be read: {err}", source=str(path)) from err


def unzip_weights(path: Path, target: Path) -> FileFingerprint:
    """Extract the weights from a zip. Its member names never become paths, and its declared sizes are not trusted."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.rsplit("/", 1)[-1] == WEIGHTS_NAME]
            if len(members) != 1:
                raise CheckpointError(f"{len(members) or 'no'} {WEIGHTS_NAME} in this zip", source=str(path))
            with archive.open(members[0]) as stream:
                return write_chunks(bounded_chunks(stream, MAX_BYTES, str(path)), target)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as err:
        raise CheckpointError(f"the zip is damaged: {err}", source=str(path), remedy="get the file again") from err
