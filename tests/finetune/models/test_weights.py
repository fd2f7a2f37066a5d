"""Official weights: every form that they come in, and everything that may be wrong with them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.errors import CheckpointError
from finetune.models.weights import load_official_weights, load_strictly, relative_position_index, repair_old_names
from tests.helpers.weight_files import TENSORS, torch_file, zip_of

# --- forms


@pytest.mark.parametrize(
    "form", ["pytorch_model.bin", "official.zip", "nested.zip", "any.safetensors", "folder", "folder of safetensors"]
)
def test_weights_are_read_in_every_form_that_they_come_in(form: str, tmp_path: Path) -> None:
    content = torch_file()
    if form.endswith("safetensors"):
        source = tmp_path / ("model.safetensors" if form.startswith("folder") else form)
        save_file(TENSORS, source)
        content = source.read_bytes()
    elif form.endswith(".zip"):
        member = "pytorch_model.bin" if form.startswith("official") else "some/folder/pytorch_model.bin"
        source = tmp_path / form
        source.write_bytes(zip_of((member, content), ("readme.txt", b"hello")))
    else:
        source = tmp_path / "pytorch_model.bin"
        source.write_bytes(content)
    weights = load_official_weights(tmp_path if form.startswith("folder") else source, "medclip-vit")
    assert weights.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert weights.provenance.as_dict() == {
        "source": str(source),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "as_reported": False,
    }
    assert weights.vocabulary is None


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(torch_file())
    assert load_official_weights(tmp_path / "weights", "medclip-resnet").tensors.keys() == TENSORS.keys()


def test_the_vocabulary_is_looked_for_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(torch_file())
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        assert load_official_weights(source, "medclip-vit").vocabulary == tmp_path / "vocab.txt"


# --- what is wrong with a file


class _Touch:
    """A pickle that would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.bin", b"", "cannot be read as weights"),
        ("w.bin", b"not weights at all, but long enough to be some", "cannot be read as weights"),
        ("w.bin", torch_file()[:-100], "cannot be read as weights"),
        ("w.bin", torch_file([1, 2]), "not a table of named tensors"),
        ("w.bin", torch_file({"epoch": 3}), "not a table of named tensors"),
        ("w.safetensors", b"\x10\0\0\0\0\0\0\0{broken", "cannot be read as weights"),
        ("w.zip", zip_of(("readme.txt", b"hello")), r"no pytorch_model\.bin in this zip"),
        (
            "w.zip",
            zip_of(("a/pytorch_model.bin", b""), ("b/pytorch_model.bin", b"")),
            r"2 pytorch_model\.bin in this zip",
        ),
        ("w.zip", zip_of(("pytorch_model.bin", b"rubbish")), "cannot be read as weights"),
    ],
)
def test_a_file_that_does_not_hold_weights_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_official_weights(path, "medclip-vit")
    assert caught.value.source == str(path)


def test_a_zip_with_a_flipped_bit_is_damaged(tmp_path: Path) -> None:
    content = bytearray(zip_of(("pytorch_model.bin", torch_file())))
    content[200] ^= 1
    (tmp_path / "w.zip").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the zip is damaged|cannot be read"):
        load_official_weights(tmp_path / "w.zip", "medclip-vit")


def test_code_inside_a_file_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(torch_file({"weight": _Touch(tmp_path / "touched")}))
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_official_weights(tmp_path / "w.bin", "medclip-vit")
    assert not (tmp_path / "touched").exists()


def test_names_inside_a_zip_choose_no_path(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "w.zip").write_bytes(zip_of(("../../pytorch_model.bin", torch_file()), ("/etc/evil", b"")))
    assert load_official_weights(inner / "w.zip", "medclip-vit").tensors.keys() == TENSORS.keys()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["w.zip"]


def test_a_zip_that_unpacks_to_more_than_it_should_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.models.official_weights.MAX_BYTES", 5_000_000)
    (tmp_path / "w.zip").write_bytes(zip_of(("pytorch_model.bin", bytes(8_000_000))))
    assert (tmp_path / "w.zip").stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="larger than 5,000,000 bytes"):
        load_official_weights(tmp_path / "w.zip", "medclip-vit")


def test_a_source_that_is_missing_or_not_clear_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file or folder .*`official` downloads"):
        load_official_weights(tmp_path / "nothing", "medclip-vit")
    with pytest.raises(CheckpointError, match="no files of weights in this folder"):
        load_official_weights(tmp_path, "medclip-vit")
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"2 files of weights .*give the file itself"):
        load_official_weights(tmp_path, "medclip-vit")


# --- names and values


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("first.weight", None, "1 tensor differs: missing first.weight"),
        ("third.weight", torch.zeros(1), "1 tensor differs: unexpected third.weight"),
        ("second.bias", torch.zeros(3), r"second.bias is \(3,\), expected \(2,\)"),
        ("second.bias", torch.tensor([0.0, torch.nan]), "second.bias holds NaN"),
        ("second.bias", torch.tensor([0.0, torch.inf]), "second.bias holds NaN or infinity"),
    ],
)
def test_loading_is_strict_and_names_what_does_not_fit(name: str, tensor: Tensor | None, words: str) -> None:
    model = _Small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    saved = {key: value + 1 for key, value in before.items()}
    saved.pop(name, None)
    if tensor is not None:
        saved[name] = tensor
    with pytest.raises(CheckpointError, match=words) as caught:
        load_strictly(model, saved, source="w.bin")
    assert caught.value.source == "w.bin"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()), "nothing is half-loaded"


def test_position_ids_are_checked_and_dropped() -> None:
    name = "text_model.model.embeddings.position_ids"
    assert repair_old_names({name: torch.arange(512)[None], **TENSORS}, TENSORS).keys() == TENSORS.keys()
    kept = repair_old_names({name: torch.arange(512)[None]}, {name: torch.zeros(1, 512)})
    assert kept.keys() == {name}, "a release that saves them gets them"
    with pytest.raises(CheckpointError, match=f"{name} does not hold the expected positions"):
        repair_old_names({name: torch.arange(512).flip(0)[None]}, TENSORS)


_OLD = "vision_model.model.encoder.layers.0.blocks.1"
_OLD_AND_NEW = {
    "attention.self.query.weight": "attention.q_proj.weight",
    "attention.self.query.bias": "attention.q_proj.bias",
    "attention.self.key.weight": "attention.k_proj.weight",
    "attention.self.value.bias": "attention.v_proj.bias",
    "attention.output.dense.weight": "attention.o_proj.weight",
    "attention.self.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
    "intermediate.dense.bias": "mlp.fc1.bias",
    "output.dense.weight": "mlp.fc2.weight",
    "layernorm_before.weight": "layernorm_before.weight",
}


def test_swins_layers_get_their_new_names_where_the_network_has_those() -> None:
    saved = {f"{_OLD}.{name}": torch.rand(169, 3) for name in _OLD_AND_NEW}
    renamed = {f"{_OLD}.{new}": saved[f"{_OLD}.{old}"] for old, new in _OLD_AND_NEW.items()}
    index = {f"{_OLD}.attention.self.relative_position_index": relative_position_index(7)}
    repaired = repair_old_names(saved | index, expected=renamed)
    assert repaired.keys() == renamed.keys()
    assert all(repaired[name] is tensor for name, tensor in renamed.items())
    assert repair_old_names(saved | index, expected=saved | index).keys() == (saved | index).keys()


def test_names_of_the_text_tower_are_never_renamed() -> None:
    name = "text_model.model.encoder.layer.0.output.dense.weight"
    assert repair_old_names(
        {name: torch.zeros(1)}, {name.replace("output.dense", "mlp.fc2"): torch.zeros(1)}
    ).keys() == {name}


def test_the_relative_position_index_is_the_one_of_transformers_and_is_checked() -> None:
    from transformers import SwinConfig, SwinModel

    model = SwinModel(SwinConfig(depths=[1], num_heads=[3]))
    name = "encoder.layers.0.blocks.0.attention.self.relative_position_index"
    assert torch.equal(relative_position_index(7), model.state_dict()[name])
    saved = {f"vision_model.model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    saved[f"vision_model.model.{name}"][3, 4] += 1
    with pytest.raises(CheckpointError, match="relative_position_index does not hold the expected positions"):
        repair_old_names(saved, saved)
