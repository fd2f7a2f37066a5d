"""The heatmap over the radiograph: at the right place, on an absolute scale, and never alarming without evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.client.test_models import prediction
from xray_client import ImageUnreadable, Preprocessing, render_overlay, write_overlay
from xray_client._imaging.overlay import FULL_EVIDENCE

PAD, STRETCH = Preprocessing(geometry="pad"), Preprocessing(geometry="stretch")


def heat(*patches: tuple[int, int], log_odds: float = FULL_EVIDENCE, side: int = 7) -> np.ndarray:
    """A heatmap with this much evidence in some patches: what the whole image would have if it all looked so."""
    heatmap = np.zeros((side, side), np.float32)
    for row, column in patches:
        heatmap[row, column] = log_odds / heatmap.size
    return heatmap


def colourfulness(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture).astype(np.int32)
    return pixels.max(axis=2) - pixels.min(axis=2)


def grey(width: int, height: int, level: int = 128) -> Image.Image:
    return Image.new("L", (width, height), level)


def ramp(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height))


@pytest.mark.parametrize("preprocessing", [PAD, STRETCH], ids=["pad", "stretch"])
@pytest.mark.parametrize("size", [(400, 300), (300, 400), (224, 224), (100, 60), (333, 1000)], ids=str)
def test_the_evidence_lies_where_the_model_saw_it(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    # A white spot in the radiograph, the patch that it falls into after preprocessing, and back again.
    width, height = size
    spot = (round(0.62 * width), round(0.4 * height))
    radiograph = grey(width, height, 0)
    reach = max(width, height) // 20
    radiograph.paste(255, (spot[0] - reach, spot[1] - reach, spot[0] + reach, spot[1] + reach))
    prepared = preprocessing.apply(radiograph)[0].astype(np.float64)
    patches = prepared.reshape(7, 32, 7, 32).mean(axis=(1, 3))
    seen = zip(*np.nonzero(patches > patches.max() / 2), strict=True)
    overlay = render_overlay(grey(width, height), heat(*seen), preprocessing=preprocessing)
    assert overlay.size == size
    painted = colourfulness(overlay)
    rows, columns = np.nonzero(painted > painted.max() / 2)
    patch = (max(width, height, 224) if preprocessing is PAD else np.array([width, height])) / np.array([7, 7])
    assert abs(columns.mean() - spot[0]) <= 0.75 * patch[0]
    assert abs(rows.mean() - spot[1]) <= 0.75 * patch[1]


def test_evidence_in_the_padding_is_cut_off() -> None:
    # 224 x 96: rows 0 and 1, and 5 and 6, of the patches see the black border alone.
    assert colourfulness(render_overlay(grey(224, 96), heat((0, 3), (6, 3)), preprocessing=PAD)).max() == 0
    assert colourfulness(render_overlay(grey(224, 96), heat((3, 3)), preprocessing=PAD)).max() > 60


def test_no_evidence_and_evidence_against_leave_the_radiograph_as_it_is() -> None:
    radiograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8))
    for log_odds in (0.0, -FULL_EVIDENCE):
        heatmap = np.full((7, 7), log_odds / 49, np.float32)
        overlay = render_overlay(radiograph, heatmap, preprocessing=PAD)
        assert np.array_equal(np.asarray(overlay), np.asarray(radiograph.convert("RGB")))


def test_the_scale_is_absolute_so_that_weak_evidence_stays_pale() -> None:
    seen = [
        int(colourfulness(render_overlay(grey(224, 224), heat((3, 3), log_odds=amount), preprocessing=PAD)).max())
        for amount in (0.5, 2.0, 5.0, FULL_EVIDENCE, 3 * FULL_EVIDENCE)
    ]
    assert seen == sorted(seen)
    assert seen[0] < 8  # half a unit of log-odds is next to nothing, although it is this image's maximum
    assert seen[3] > 60


def test_the_scale_does_not_depend_on_the_number_of_patches() -> None:
    for preprocessing in (PAD, STRETCH):
        pictures = [
            np.asarray(render_overlay(grey(64, 64), np.full((n, n), 4 / n**2, np.float32), preprocessing=preprocessing))
            for n in (7, 14)
        ]
        assert np.array_equal(pictures[0][32, 32], pictures[1][32, 32])


def test_more_evidence_is_lighter_so_that_the_colour_blind_can_tell() -> None:
    lightness = []
    for amount in (2.0, 4.0, 6.0, 8.0, 10.0):
        heatmap = np.full((7, 7), amount / 49, np.float32)
        pixel = render_overlay(grey(14, 14, 0), heatmap, preprocessing=STRETCH, opacity=1).getpixel((7, 7))
        assert isinstance(pixel, tuple)
        lightness.append(0.2126 * pixel[0] + 0.7152 * pixel[1] + 0.0722 * pixel[2])
    assert lightness == sorted(lightness)


@pytest.mark.parametrize(
    ("radiograph", "heatmap", "opacity"),
    [
        (Image.new("RGB", (9, 9)), heat(), 0.5),
        (grey(9, 9), np.zeros(49, np.float32), 0.5),
        (grey(9, 9), np.full((7, 7), np.nan, np.float32), 0.5),
        (grey(9, 9), heat(), 1.5),
    ],
    ids=["colour", "flat heatmap", "not numbers", "opacity"],
)
def test_what_cannot_be_painted_is_refused(radiograph: Image.Image, heatmap: np.ndarray, opacity: float) -> None:
    with pytest.raises(ValueError):
        render_overlay(radiograph, heatmap, preprocessing=PAD, opacity=opacity)


@pytest.mark.parametrize(
    ("size", "shown"), [((2000, 1500), (1024, 768)), ((600, 700), (600, 700)), ((64, 32), (512, 256))], ids=str
)
def test_the_file_holds_the_picture_at_a_readable_size_with_a_caption(
    tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    path = tmp_path / "chest.overlay.png"
    write_overlay(path, ramp(*size), prediction(heatmap=heat((3, 3))))
    with Image.open(path) as picture:
        picture.load()
    assert picture.format == "PNG"
    assert picture.width == shown[0]
    assert shown[1] + 80 < picture.height < shown[1] + 200
    caption = np.asarray(picture.crop((0, shown[1], *picture.size)))
    assert (caption > 200).any()  # something is written there
    assert not (caption[-8:] > 100).any()  # and it ends before the edge
    assert list(tmp_path.iterdir()) == [path]


def test_a_narrow_picture_keeps_its_caption_whole(tmp_path: Path) -> None:
    path = tmp_path / "narrow.png"
    write_overlay(path, ramp(30, 600), prediction(heatmap=heat((3, 3)), novelty=1.4))
    with Image.open(path) as picture:
        assert picture.width >= 480
        assert not (np.asarray(picture)[-100:, -8:] > 100).any()


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_overlay(tmp_path / "missing" / "a.png", ramp(9, 9), prediction())
    with pytest.raises(ValueError, match="heatmap=True"):
        write_overlay(tmp_path / "a.png", ramp(9, 9), prediction(heatmap=None))
    with pytest.raises(ImageUnreadable):
        write_overlay(tmp_path / "a.png", tmp_path / "missing.png", prediction())
    assert not list(tmp_path.iterdir())
