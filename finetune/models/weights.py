"""Loading of MedCLIP's official weights, from a file, a folder or the download.

A source is `pytorch_model.bin`, the official zip around it, a safetensors file, a folder with one of these, or the word
`official`, which downloads once into the cache. File types are recognised by their content. The class prompts also need
Bio_ClinicalBERT's `vocab.txt`, which is expected beside the weights.

Loading is strict. The only repair is `repair_old_names`: `strict=False`, the usual workaround for the old names, can
silently leave a tower random.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.request import OpenerDirector

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.errors import CheckpointError

from .download import FileFingerprint, https_opener
from .official_weights import (
    REPORTED,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    cache_folder,
    download_official,
    holds_weights_file,
    unzip_weights,
)

OFFICIAL = "official"
SAFETENSORS_NAME = "model.safetensors"


@dataclass(frozen=True)
class Provenance:
    """Origin of weights.

    Attributes:
        source: Path or address.
        bytes: Size of the file that holds the tensors.
        sha256: Hash of that file.
        as_reported: Size and hash match the third-party reports of the official file; None = there are no reports.
    """

    source: str
    bytes: int
    sha256: str
    as_reported: bool | None = None

    def as_dict(self) -> dict[str, str | int | bool | None]:
        """Return the fields as a dict, for a checkpoint's `about`."""
        return asdict(self)


@dataclass(frozen=True)
class OfficialWeights:
    """Tensors of a weights file, under their saved names.

    Attributes:
        tensors: Tensors on the CPU.
        provenance: Origin of the file.
        vocabulary: Bio_ClinicalBERT's vocabulary beside the file; None if there is none.
    """

    tensors: dict[str, Tensor]
    provenance: Provenance
    vocabulary: Path | None


def load_official_weights(
    source: str | Path, architecture: str, *, cache: Path | None = None, opener: OpenerDirector | None = None
) -> OfficialWeights:
    """Read weights without executing code from the file.

    Args:
        source: File, folder, or "official".
        architecture: "medclip-vit" or "medclip-resnet"; selects the download.
        cache: Folder for downloads; None = `cache_folder()`.
        opener: Opener for downloads; None = https only.

    Raises:
        CheckpointError: The file is missing, damaged, holds no weights, or cannot be downloaded.
    """
    if str(source) == OFFICIAL:
        path, address = download_official(architecture, cache or cache_folder(), opener or https_opener())
    else:
        path = _find_file(Path(source))
        address = str(path)
    vocabulary = path.with_name(VOCABULARY_NAME)
    tensors, fingerprint = _read_tensors(path)
    as_reported = fingerprint == REPORTED[architecture] if architecture in REPORTED else None
    provenance = Provenance(address, fingerprint.bytes, fingerprint.sha256, as_reported)
    return OfficialWeights(tensors, provenance, vocabulary if vocabulary.is_file() else None)


def load_strictly(model: nn.Module, saved: Mapping[str, Tensor], *, source: str) -> None:
    """Load `saved` into `model` after repairing old names; raise `CheckpointError` unless all tensors match."""
    expected = model.state_dict()
    try:
        tensors = repair_old_names(saved, expected)
    except CheckpointError as err:
        err.source = source
        raise
    problems = tensor_problems(tensors, expected)
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise CheckpointError(
            f"these weights belong to another network, {len(problems)} "
            f"{'tensor differs' if len(problems) == 1 else 'tensors differ'}: {shown}",
            source=source,
            remedy="choose the matching --model",
        )
    model.load_state_dict(tensors, strict=True)


def tensor_problems(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """List the mismatches between `found` and `expected`: names, shapes, NaN and infinity; one line each, sorted."""
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if expected[name].shape != found[name].shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
        elif not torch.isfinite(found[name].float()).all():
            problems.append(f"{name} holds NaN or infinity")
    return sorted(problems)


_POSITION_IDS = "text_model.model.embeddings.position_ids"
_RELATIVE_INDEX = ".attention.self.relative_position_index"
_BIAS_TABLE = ".attention.self.relative_position_bias_table"
# transformers 5.9 renamed Swin's layers. The order matters: the last rule must come after the second.
_SWIN_RENAMED = (
    (r"\.attention\.self\.(query|key|value)\.", lambda match: f".attention.{match[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (
        r"\.attention\.self\.relative_position_bias_table$",
        ".attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def repair_old_names(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors that MedCLIP saved with transformers 4.24 to the names of the installed release.

    - Constant tables (`position_ids`, Swin's `relative_position_index`) are checked against their formula, and dropped
      if the network no longer saves them.
    - Swin's layers get their names of transformers 5.9 if, and only if, the network has those.

    Everything else is passed on unchanged, for strict loading to check.

    Args:
        saved: Tensors as read.
        expected: State dict of the network.

    Raises:
        CheckpointError: A constant table has unexpected content.
    """
    repaired = {}
    for name, tensor in saved.items():
        constant = _constant_table(name, saved)
        if constant is not None:
            if not torch.equal(tensor.long().flatten(), constant.flatten()):
                raise CheckpointError(f"{name} does not hold the expected positions", remedy="get the file again")
            if name not in expected:
                continue
        repaired[_name_from_5_9(name, expected)] = tensor
    return repaired


def _constant_table(name: str, saved: Mapping[str, Tensor]) -> Tensor | None:
    """Return the expected content of a tensor of positions; None for all others."""
    if name == _POSITION_IDS:
        return torch.arange(saved[name].numel())
    if name.endswith(_RELATIVE_INDEX):
        table = saved.get(name.removesuffix(_RELATIVE_INDEX) + _BIAS_TABLE)
        return None if table is None else relative_position_index((round(len(table) ** 0.5) + 1) // 2)
    return None


def relative_position_index(window: int) -> Tensor:
    """Compute the row of Swin's bias table for each pair of positions in a window: (w * w, w * w).

    See Liu et al. 2021, section 3.2.
    """
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = places[:, None] - places[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def _name_from_5_9(name: str, expected: Mapping[str, Tensor]) -> str:
    if name in expected or not name.startswith("vision_model."):
        return name
    new = name
    for pattern, replacement in _SWIN_RENAMED:
        new = re.sub(pattern, replacement, new)
    return new if new in expected else name


def _find_file(source: Path) -> Path:
    if not source.exists():
        raise CheckpointError(
            "there is no such file or folder", source=str(source), remedy=f"`{OFFICIAL}` downloads MedCLIP's weights"
        )
    if not source.is_dir():
        return source
    named = [source / name for name in (WEIGHTS_NAME, SAFETENSORS_NAME) if (source / name).is_file()]
    found = named or sorted(source.glob("*.zip"))
    if len(found) != 1:
        raise CheckpointError(
            f"{len(found) or 'no'} files of weights in this folder", source=str(source), remedy="give the file itself"
        )
    return found[0]


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], FileFingerprint]:
    """Read the tensors of a file, and measure the file that holds them: in a zip, that is its member."""
    if not holds_weights_file(path):
        return _read_plain(path), FileFingerprint.of(path)
    with tempfile.TemporaryDirectory(prefix="medclip-weights-") as folder:
        inner = Path(folder) / WEIGHTS_NAME
        fingerprint = unzip_weights(path, inner)
        return _read_plain(inner, shown=path), fingerprint


def _read_plain(path: Path, *, shown: Path | None = None) -> dict[str, Tensor]:
    source = str(shown or path)
    try:
        with path.open("rb") as file:
            # A safetensors file starts with the length of a JSON text (8 bytes) and the text itself.
            tensors = load_file(path) if file.read(9)[8:] == b"{" else torch.load(path, "cpu", weights_only=True)
    except Exception as err:  # a damaged pickle can raise anything
        first = str(err).splitlines()[0] if str(err) else repr(err)
        raise CheckpointError(
            f"cannot be read as weights: {first}", source=source, remedy="get the file again"
        ) from err
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError("this is not a table of named tensors", source=source)
    return dict(tensors)
