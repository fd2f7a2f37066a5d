"""MedCLIP's official weights: from a file, a folder or the project's server, under the names that our modules have.

A source is `pytorch_model.bin`, the official zip around it, a safetensors file, a folder with one of these, or the word
`official`, which downloads once into the cache. What a file is, is told from its bytes. The class prompts need
Bio_ClinicalBERT's `vocab.txt` as well, which is looked for beside the weights.

Loading is strict. The only repair is `repair_old_names`: with `strict=False`, the usual way round the old names, a
tower can stay random without a word.
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
    """Where weights came from.

    Attributes:
        source: Path or address.
        bytes: Size of the file that holds the tensors.
        sha256: Of that file.
        as_reported: Whether both are what others report of the official file; None = nobody does.
    """

    source: str
    bytes: int
    sha256: str
    as_reported: bool | None = None

    def as_dict(self) -> dict[str, str | int | bool | None]:
        """For a checkpoint's `about`."""
        return asdict(self)


@dataclass(frozen=True)
class OfficialWeights:
    """Tensors under the names that they were saved with, and what is known of them.

    Attributes:
        tensors: On the CPU.
        provenance: Of the file that holds them.
        vocabulary: Bio_ClinicalBERT's, if there is one beside them.
    """

    tensors: dict[str, Tensor]
    provenance: Provenance
    vocabulary: Path | None


def load_official_weights(
    source: str | Path, architecture: str, *, cache: Path | None = None, opener: OpenerDirector | None = None
) -> OfficialWeights:
    """Read weights; nothing in the file is run.

    Args:
        source: File, folder, or "official".
        architecture: "medclip-vit" or "medclip-resnet"; which one to download.
        cache: Of downloads; None = `cache_folder()`.
        opener: Of downloads; None = https only.

    Raises:
        CheckpointError: Missing, damaged, not weights, or not to be downloaded; says which.
    """
    if str(source) == OFFICIAL:
        path, address = download_official(architecture, cache or cache_folder(), opener or https_opener())
    else:
        path = _find_file(Path(source))
        address = str(path)
    vocabulary = path.with_name(VOCABULARY_NAME)
    tensors, record = _read_tensors(path)
    as_reported = record == REPORTED[architecture] if architecture in REPORTED else None
    provenance = Provenance(address, record.bytes, record.sha256, as_reported)
    return OfficialWeights(tensors, provenance, vocabulary if vocabulary.is_file() else None)


def load_strictly(model: nn.Module, saved: Mapping[str, Tensor], *, source: str) -> None:
    """Fill all of `model` from `saved`, old names repaired; `CheckpointError` if a tensor is missing or left over."""
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
            f"these are not the weights of this network, {len(problems)} tensors: {shown}",
            source=source,
            remedy="choose the --model that they belong to",
        )
    model.load_state_dict(tensors, strict=True)


def tensor_problems(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What keeps `found` from being loaded as `expected`: names, shapes, NaN and infinity; one line each, sorted."""
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
# transformers 5.9 renamed Swin's layers; the order matters, the last rule matches what the second has not.
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
    """Tensors that MedCLIP saved under transformers 4.24, under the names that the installed release has.

    - Constant tables (`position_ids`, Swin's `relative_position_index`) are checked against their formula, and dropped
      where they are no longer saved.
    - Swin's layers get their names of transformers 5.9 where, and only where, the network has those.

    Everything else is passed on as it is, for strict loading to judge.

    Args:
        saved: As read.
        expected: State dict of the network to be filled.

    Raises:
        CheckpointError: A constant table does not hold what it must.
    """
    repaired = {}
    for name, tensor in saved.items():
        constant = _constant_table(name, saved)
        if constant is not None:
            if not torch.equal(tensor.long().flatten(), constant.flatten()):
                raise CheckpointError(f"{name} does not hold the positions that it must", remedy="get the file again")
            if name not in expected:
                continue
        repaired[_name_from_5_9(name, expected)] = tensor
    return repaired


def _constant_table(name: str, saved: Mapping[str, Tensor]) -> Tensor | None:
    """What a tensor that only states positions must hold; None for all others."""
    if name == _POSITION_IDS:
        return torch.arange(saved[name].numel())
    if name.endswith(_RELATIVE_INDEX):
        table = saved.get(name.removesuffix(_RELATIVE_INDEX) + _BIAS_TABLE)
        return None if table is None else relative_position_index((round(len(table) ** 0.5) + 1) // 2)
    return None


def relative_position_index(window: int) -> Tensor:
    """Row of Swin's bias table for each pair of places in a window (Liu et al. 2021, section 3.2): (w * w, w * w)."""
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
    """Tensors of a file, and the record of the file that holds them: inside a zip, that is the one inside."""
    if not holds_weights_file(path):
        return _read_plain(path), FileFingerprint.of(path)
    with tempfile.TemporaryDirectory(prefix="medclip-weights-") as folder:
        inner = Path(folder) / WEIGHTS_NAME
        record = unzip_weights(path, inner)
        return _read_plain(inner, shown=path), record


def _read_plain(path: Path, *, shown: Path | None = None) -> dict[str, Tensor]:
    source = str(shown or path)
    try:
        with path.open("rb") as file:
            # A safetensors file starts with the length of a JSON text, 8 bytes, and that text.
            tensors = load_file(path) if file.read(9)[8:] == b"{" else torch.load(path, "cpu", weights_only=True)
    except Exception as err:  # a damaged pickle can make its reader stumble over anything
        first = str(err).splitlines()[0] if str(err) else repr(err)
        raise CheckpointError(
            f"cannot be read as weights: {first}", source=source, remedy="get the file again"
        ) from err
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError("this is not a table of named tensors", source=source)
    return dict(tensors)
