"""Our MedCLIP against the `medclip` package: same checkpoint, same radiographs, same answers.

Its classes fetch their towers from a hub and send everything to a GPU; both are patched away, in these tests alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finetune.models.classifier import TOWERS, ModelConfig, RadiographClassifier
from finetune.models.medclip import PretrainedMedCLIP, cosine_scale, load_medclip, semantic_matching_loss
from finetune.models.prompts import PROMPTS, bert_tokenizer
from tests.helpers.small_medclip import BERT, RESNET_BLOCKS, SWIN, shake, small_medclip, write_vocabulary
from xray_client import LABELS, Preprocessing, load_radiograph, read_radiograph

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Pair:
    """The package's model, and ours loaded from the checkpoint that it saved."""

    architecture: str
    theirs: nn.Module
    ours: PretrainedMedCLIP
    folder: Path

    def classifier(self) -> RadiographClassifier:
        return RadiographClassifier(ModelConfig(architecture=self.architecture), weights=self.ours).eval()


@pytest.fixture(scope="module", params=["medclip-vit", "medclip-resnet"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    from medclip import constants, modeling_medclip
    from torchvision.models.resnet import Bottleneck, ResNet
    from transformers import BertConfig, BertModel, SwinModel

    def tower(name: str, **options: object) -> nn.Module:
        return SwinModel(SWIN) if "swin" in name else BertModel(BertConfig(**(BERT.to_dict() | options)))

    folder = tmp_path_factory.mktemp(request.param)
    write_vocabulary(folder)
    # As on the hub: the vocabulary and the network's configuration, but no tokenizer's.
    (folder / "config.json").write_text(json.dumps(BERT.to_dict()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_medclip, "AutoModel", SimpleNamespace(from_pretrained=tower))
        patch.setattr(modeling_medclip, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda name: None))
        patch.setattr("torchvision.models.resnet50", lambda pretrained: ResNet(Bottleneck, list(RESNET_BLOCKS)))
        patch.setattr(torch.Tensor, "cuda", lambda self: self)
        patch.setattr(constants, "BERT_TYPE", str(folder))
        vision = {
            "medclip-vit": modeling_medclip.MedCLIPVisionModelViT,
            "medclip-resnet": modeling_medclip.MedCLIPVisionModel,
        }
        torch.manual_seed(0)
        theirs = modeling_medclip.MedCLIPModel(vision_cls=vision[request.param]).eval()
        shake(theirs)
        saved = theirs.state_dict()
        # The official file was saved by transformers 4.24, which saved this as well.
        saved["text_model.model.embeddings.position_ids"] = torch.arange(512)[None]
        torch.save(saved, folder / constants.WEIGHTS_NAME)
        ours = load_medclip(folder, request.param, model=small_medclip(request.param))
        yield Pair(request.param, theirs, ours, folder)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """uint8 (4, 1, 224, 224)."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, 224, 224), dtype=np.uint8))


@pytest.fixture(scope="module")
def pixel_values(images: Tensor) -> Tensor:
    """The same as the package's processor gives them, one channel: float (4, 1, 224, 224)."""
    from medclip.constants import IMG_MEAN, IMG_STD

    return (images.float() / 255 - IMG_MEAN) / IMG_STD


@pytest.fixture(scope="module")
def tokens(pair: Pair) -> dict[str, Tensor]:
    sentences = ["Normal chest, clear lungs.", "pneumonia", "Right lower lobe consolidation - severe"]
    found = bert_tokenizer(pair.folder / "vocab.txt", size=BERT.vocab_size)(
        sentences, padding=True, truncation=True, return_tensors="pt"
    )
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def test_the_state_dict_has_the_names_and_shapes_of_the_package(pair: Pair) -> None:
    ours, theirs = pair.ours.model.state_dict(), pair.theirs.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in theirs.items()}


@torch.inference_mode()
def test_image_embeddings_agree(pair: Pair, pixel_values: Tensor) -> None:
    theirs = pair.theirs.encode_image(pixel_values)
    assert theirs.shape == (4, 512)
    assert float((theirs[0] - theirs[1]).abs().max()) > 100 * TOLERANCE, "the radiographs must be told apart"
    ours = pair.ours.model.encode_images(pixel_values.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_text_embeddings_agree_padding_included(pair: Pair, tokens: dict[str, Tensor]) -> None:
    assert not tokens["attention_mask"].all()
    theirs = pair.theirs.encode_text(**tokens)
    torch.testing.assert_close(pair.ours.model.encode_texts(**tokens), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("logit_scale", [2.6593, 7.0, -1.0])
@torch.inference_mode()
def test_logits_agree_also_where_the_temperature_is_out_of_bounds(
    pair: Pair, pixel_values: Tensor, tokens: dict[str, Tensor], logit_scale: float
) -> None:
    before = pair.theirs.logit_scale.data.clone()
    try:
        for model in (pair.theirs, pair.ours.model):
            model.logit_scale.data = torch.tensor(logit_scale)
        theirs = pair.theirs(pixel_values=pixel_values, **tokens)["logits"]
        ours = pair.ours.model(pixel_values.expand(-1, 3, -1, -1), **tokens)
    finally:
        for model in (pair.theirs, pair.ours.model):
            model.logit_scale.data = before.clone()
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_prompts_are_read_as_the_package_reads_them(pair: Pair) -> None:
    from medclip.prompts import process_class_prompts

    sentences = {"Pneumonia": ["Patchy PNEUMONIA of the Lung, " + "chest " * 100, "é"]}
    theirs = process_class_prompts(sentences)["Pneumonia"]
    tokenizer = bert_tokenizer(pair.folder / "vocab.txt", size=BERT.vocab_size)
    ours = tokenizer(sentences["Pneumonia"], padding=True, truncation=True, return_tensors="pt")
    assert theirs["input_ids"].shape == (2, 77)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(ours[name], theirs[name])


def _zero_shot(pair: Pair, pixel_values: Tensor, *, ensemble: bool) -> Tensor:
    from medclip.modeling_medclip import PromptClassifier
    from medclip.prompts import process_class_prompts

    prompts = process_class_prompts({label: list(PROMPTS[label]) for label in LABELS})
    inputs = {
        label: {name: found[name] for name in ("input_ids", "attention_mask")} for label, found in prompts.items()
    }
    answer = PromptClassifier(pair.theirs, ensemble=ensemble)(pixel_values, inputs)
    assert answer["class_names"] == list(LABELS)
    return answer["logits"]


@torch.inference_mode()
def test_the_untrained_classifier_is_the_packages_mean_over_prompts(
    pair: Pair, images: Tensor, pixel_values: Tensor
) -> None:
    theirs = _zero_shot(pair, pixel_values, ensemble=True)
    torch.testing.assert_close(pair.classifier()(images), theirs, rtol=TOLERANCE, atol=TOLERANCE)


@torch.inference_mode()
def test_the_best_prompt_of_each_class_agrees_with_the_packages_maximum(
    pair: Pair, images: Tensor, pixel_values: Tensor
) -> None:
    theirs = _zero_shot(pair, pixel_values, ensemble=False)
    classifier = pair.classifier()
    embedding = classifier.embed_pooled(classifier.features(images).mean(dim=(2, 3)))
    best = [(embedding @ prompts.T).amax(dim=1) for prompts in classifier.prompt_embeddings]
    torch.testing.assert_close(classifier.scale * torch.stack(best, dim=1), theirs, rtol=TOLERANCE, atol=TOLERANCE)


@torch.inference_mode()
def test_the_semantic_matching_loss_agrees(pair: Pair, pixel_values: Tensor, tokens: dict[str, Tensor]) -> None:
    from medclip.losses import ImageTextContrastiveLoss

    # -1 = absent, 0 = uncertain, 1 = present; four radiographs, three sentences.
    image_labels = torch.tensor([[1.0, 0, -1], [0, 1, 1], [0, 0, 0], [-1, -1, 1]])
    text_labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, -1, 1]])
    theirs = ImageTextContrastiveLoss(pair.theirs)(
        pixel_values=pixel_values, img_labels=image_labels, text_labels=text_labels, **tokens
    )
    model = pair.ours.model
    ours = semantic_matching_loss(
        model.encode_images(pixel_values.expand(-1, 3, -1, -1)),
        model.encode_texts(**tokens),
        image_labels @ text_labels.T,
        cosine_scale(model.logit_scale),
    )
    torch.testing.assert_close(ours, theirs["loss_value"], rtol=0, atol=TOLERANCE)


def _reference_grey(path: Path) -> Image.Image:
    """MedCLIP's processor before it normalises: grey, centred on a black square, bicubic to 224 pixels."""
    radiograph = Image.open(path).convert("L")
    side = max(224, *radiograph.size)
    square = Image.new("L", (side, side), 0)
    square.paste(radiograph, tuple(int((side - length) / 2) for length in radiograph.size))
    return square.resize((224, 224), Image.Resampling.BICUBIC)


def test_real_radiographs_are_prepared_as_medclip_prepares_them(real_data: Path) -> None:
    paths = sorted((real_data / "originals").rglob("*.jpeg"))
    assert len(paths) == 16
    preprocessing, shrunk = Preprocessing(geometry="pad", version=1), []
    for path in paths:
        reference = np.asarray(_reference_grey(path), dtype=np.int16)
        whole = preprocessing.apply(read_radiograph(path))[0]
        assert np.abs(whole - reference).max() <= 1, path.name
        # The decoder may shrink a large JPEG on the way, which saves half the time.
        shrunk.append(np.abs(load_radiograph(path, preprocessing)[0] - reference))
    assert np.mean(shrunk) < 0.5
    assert np.max(shrunk) <= 3


def test_grey_levels_become_the_pixel_values_that_medclip_was_trained_with(
    pair: Pair, images: Tensor, pixel_values: Tensor
) -> None:
    from medclip.constants import IMG_MEAN, IMG_STD

    info = TOWERS[pair.architecture]
    assert (info.mean, info.std) == (IMG_MEAN, IMG_STD)
    classifier = pair.classifier()
    classifier.tower = nn.Identity()  # what goes in comes out
    torch.testing.assert_close(classifier.features(images), pixel_values.expand(-1, 3, -1, -1), rtol=0, atol=TOLERANCE)
