"""The official weights themselves: how they are packed, where they are downloaded from, how they are known again.

MedCLIP's pages give the address of a zip, and the zip holds `pytorch_model.bin`. Bio_ClinicalBERT's vocabulary, which
is in neither, comes from its own place. All is kept in one folder of the cache, with its sizes and hashes.
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

from .download import MAX_BYTES, FileFingerprint, bounded_chunks, fetch_file, fetch_text, require_https, write_checked

WEIGHTS_NAME, VOCABULARY_NAME, RECORD_NAME = "pytorch_model.bin", "vocab.txt", "provenance.json"
VOCABULARY_ADDRESS = "https://huggingface.co/emilyalsentzer/Bio_ClinicalBERT/resolve/main/vocab.txt"
# As third parties give them, so a difference is reported, not refused. The vocabulary is that of BERT's cased models.
REPORTED = {
    "medclip-vit.zip": FileFingerprint(506_392_441, "414b3ac515431c06018400ab2d83ee7307e314020cd4f6babbfdea4a58515725"),
    "medclip-vit": FileFingerprint(546_888_925, "07bf9f917ccce482ea30ec84e533a30c3ad395c424d3624f6b72edf8484f8126"),
    VOCABULARY_NAME: FileFingerprint(213_450, "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"),
}


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/medclip-triton`, or under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medclip-triton"


def download_official(architecture: str, cache: Path, opener: OpenerDirector) -> tuple[Path, str]:
    """The official weights and the vocabulary in the cache, fetched at first; their path and their address."""
    folder = cache / architecture
    weights, record_path = folder / WEIGHTS_NAME, folder / RECORD_NAME
    if not record_path.is_file():
        _fetch(architecture, folder, opener)
    try:
        record = json.loads(record_path.read_text())
        kept = {name: FileFingerprint(**record["files"][name]) for name in (WEIGHTS_NAME, VOCABULARY_NAME)}
        intact = all(FileFingerprint.of(folder / name) == known for name, known in kept.items())
        address = str(record["address"])
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise CheckpointError(
            "the downloaded files are not what was recorded of them", source=str(folder), remedy="delete this folder"
        )
    return weights, address


def _fetch(architecture: str, folder: Path, opener: OpenerDirector) -> None:
    """Download, unpack and record; the record comes last, so that a folder without it is started anew."""
    import medclip.constants as constants

    pages = {
        "medclip-vit": constants.PRETRAINED_URL_MEDCLIP_VIT,
        "medclip-resnet": constants.PRETRAINED_URL_MEDCLIP_RESNET,
    }
    # The small files first: where one cannot be had, nobody waits for half a gigabyte.
    vocabulary = fetch_file(
        VOCABULARY_ADDRESS, folder / VOCABULARY_NAME, opener, what="downloading the vocabulary", limit=2**21
    )
    # The page holds nothing but the address of the zip.
    address = require_https(fetch_text(pages[architecture], opener))
    archive = folder / f".{os.getpid()}.zip"  # processes that train together may all be here
    try:
        packed = fetch_file(address, archive, opener, what=f"downloading {architecture}")
        unpacked = unzip_weights(archive, folder / WEIGHTS_NAME)
    finally:
        archive.unlink(missing_ok=True)  # half a gigabyte that nobody reads again
    zip_name = f"{architecture}.zip"
    files = {zip_name: packed, WEIGHTS_NAME: unpacked, VOCABULARY_NAME: vocabulary}
    for name, key in ((zip_name, zip_name), (WEIGHTS_NAME, architecture), (VOCABULARY_NAME, VOCABULARY_NAME)):
        if key in REPORTED and files[name] != REPORTED[key]:
            console.print(
                f"{folder / name}: {files[name].bytes:,} bytes, sha256 {files[name].sha256}: not the file that others "
                "report; it is used all the same",
                style="yellow",
            )
    record = {"address": address, "files": {name: asdict(file) for name, file in files.items()}}
    staged = folder / f".{os.getpid()}.{RECORD_NAME}"
    staged.write_text(json.dumps(record, indent=2) + "\n")
    staged.replace(folder / RECORD_NAME)


def holds_weights_file(path: Path) -> bool:
    """Whether this is the official zip; a file that torch saved is a zip, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
    except OSError as err:
        raise CheckpointError(f"cannot be read: {err}", source=str(path)) from err


def unzip_weights(path: Path, target: Path) -> FileFingerprint:
    """Take the one file of weights out of a zip. Names in the zip choose no path, and sizes in it are not believed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.rsplit("/", 1)[-1] == WEIGHTS_NAME]
            if len(members) != 1:
                raise CheckpointError(f"{len(members) or 'no'} {WEIGHTS_NAME} in this zip", source=str(path))
            with archive.open(members[0]) as stream:
                part = target.with_name(f"{target.name}.{os.getpid()}.part")
                try:
                    return write_checked(bounded_chunks(stream, MAX_BYTES, str(path)), part, target)
                finally:
                    part.unlink(missing_ok=True)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as err:
        raise CheckpointError(f"the zip is damaged: {err}", source=str(path), remedy="get the file again") from err
