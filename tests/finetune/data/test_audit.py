"""The audit of a set of radiographs."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from finetune.audit import main
from finetune.data.audit import COMPARED_AS, Audit, audit
from finetune.data.sources import find_radiographs
from finetune.evaluation.traits import ReferenceTraits
from xray_client import RESEARCH_USE, load_radiograph


def _audit(data: Path) -> Audit:
    return audit(find_radiographs(data))


@pytest.fixture
def radiographs(twenty_radiographs: Path, tmp_path: Path) -> Path:
    """Twenty radiographs of twenty patients as a training set, with nothing wrong."""
    return Path(shutil.copytree(twenty_radiographs, tmp_path / "set"))


def _first(folder: Path) -> Path:
    return sorted(folder.glob("*.jpeg"))[0]


def _into_test(radiographs: Path, name: str, label: str = "NORMAL") -> Path:
    (radiographs / "test" / label).mkdir(parents=True, exist_ok=True)
    return radiographs / "test" / label / name


def test_counts_formats_and_sizes_are_those_of_the_files(radiographs: Path) -> None:
    found = _audit(radiographs)
    assert found.counts == {
        "train": {label: {"radiographs": 10, "patients": 10} for label in ("Normal", "Pneumonia")},
    }
    assert found.formats["Pneumonia"] == {"JPEG, colour": 10}
    with Image.open(_first(radiographs / "train/NORMAL")) as image:
        assert f"{image.width} x {image.height}" in found.sizes["Normal"]
    assert sum(found.sizes["Normal"].values()) == 10


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16), "grey, 16 bit"),
        (np.linspace(0, 255, 4096).reshape(64, 64).astype(np.uint8), "grey, 8 bit"),
    ],
)
def test_the_depth_of_grey_is_told(radiographs: Path, pixels: np.ndarray, mode: str) -> None:
    Image.fromarray(pixels).save(radiographs / "train/NORMAL/IM-0001-0001.png")
    assert _audit(radiographs).formats["Normal"][f"PNG, {mode}"] == 1


def test_a_palette_is_told(radiographs: Path) -> None:
    with Image.open(_first(radiographs / "train/NORMAL")) as image:
        image.quantize(64).save(radiographs / "train/NORMAL/IM-0001-0001.png")
    assert _audit(radiographs).formats["Normal"]["PNG, palette"] == 1


def test_unreadable_files_are_listed_with_the_readers_reason(radiographs: Path) -> None:
    (radiographs / "train/NORMAL/IM-0001-0001.png").write_bytes(b"")
    (radiographs / "train/NORMAL/IM-0002-0001.png").write_bytes(b"no image at all")
    found = _audit(radiographs)
    assert {f["file"]: f["reason"] for f in found.unreadable} == {
        "train/NORMAL/IM-0001-0001.png": "the file is empty (export it again)",
        "train/NORMAL/IM-0002-0001.png": "not a PNG, JPEG, TIFF, BMP or DICOM image (convert it to PNG)",
    }


def test_a_clean_set_has_no_leakage_and_no_copies(radiographs: Path) -> None:
    found = _audit(radiographs)
    assert (found.leakage, found.exact_duplicates, found.near_duplicates, found.unreadable) == ([], [], [], [])
    assert (found.patients_in_several_splits, found.patients_in_both_classes, found.without_patient) == ([], [], 0)


def test_a_copy_in_test_is_leakage_by_name(radiographs: Path) -> None:
    original = _first(radiographs / "train/NORMAL")
    shutil.copy(original, _into_test(radiographs, "IM-9999-0001.jpeg"))
    found = _audit(radiographs)
    assert found.leakage == [f"train/NORMAL/{original.name} and test/NORMAL/IM-9999-0001.jpeg are the same file"]
    assert [(c.across_splits, c.across_classes, c.bits) for c in found.exact_duplicates] == [(True, False, None)]


def test_a_copy_saved_anew_in_test_is_leakage_by_name(radiographs: Path) -> None:
    original = _first(radiographs / "train/NORMAL")
    with Image.open(original) as image:
        image.resize((400, 300)).save(_into_test(radiographs, "IM-9999-0001.png"))
    found = _audit(radiographs)
    assert found.exact_duplicates == []
    assert found.leakage == [
        f"train/NORMAL/{original.name} and test/NORMAL/IM-9999-0001.png are copies of one radiograph"
    ]


def test_a_copy_within_training_is_reported_and_is_no_leakage(radiographs: Path) -> None:
    shutil.copy(_first(radiographs / "train/NORMAL"), radiographs / "train/NORMAL/IM-9999-0001.jpeg")
    found = _audit(radiographs)
    assert (len(found.exact_duplicates), found.leakage) == (1, [])


def test_a_patient_in_training_and_test_is_leakage_and_one_in_the_pooled_val_is_not(radiographs: Path) -> None:
    rng = np.random.default_rng(0)
    pneumonia = _first(radiographs / "train/PNEUMONIA").name.split("_")[0]
    (radiographs / "val/PNEUMONIA").mkdir(parents=True)
    for path in (_into_test(radiographs, "IM-0128-0009.png"), radiographs / f"val/PNEUMONIA/{pneumonia}_virus_9.png"):
        Image.fromarray(rng.integers(0, 256, (200, 300), dtype=np.uint8)).save(path)
    found = _audit(radiographs)
    overlaps = {t.patient: (t.places, t.leakage) for t in found.patients_in_several_splits}
    assert overlaps == {"IM-0128": (["train", "test"], True), pneumonia: (["train", "val"], False)}
    assert found.leakage == ["patient IM-0128 is in train and test"]


def test_a_radiograph_labelled_both_ways_and_a_patient_in_both_classes_are_reported(
    twenty_radiographs: Path, tmp_path: Path
) -> None:
    original = _first(twenty_radiographs / "train/NORMAL")
    other = _first(twenty_radiographs / "train/PNEUMONIA")
    shutil.copy(original, tmp_path / "copy.jpeg")
    lines = f"{original},Normal,P1", "copy.jpeg,Pneumonia,P1", f"{other},Pneumonia,P2"
    (tmp_path / "set.csv").write_text("path,label,patient\n" + "\n".join(lines))
    found = _audit(tmp_path / "set.csv")
    assert [c.across_classes for c in found.exact_duplicates] == [True]
    assert [(t.patient, t.places) for t in found.patients_in_both_classes] == [("P1", ["Normal", "Pneumonia"])]


def test_image_size_that_tells_the_classes_apart_is_a_shortcut(radiographs: Path) -> None:
    for number, path in enumerate(sorted(radiographs.rglob("*.jpeg"))):
        side = (600 if path.parent.name == "NORMAL" else 300) + 10 * number
        with Image.open(path) as image:
            image.resize((side, side)).save(path)
    found = {s.property: s for s in _audit(radiographs).shortcuts}
    assert found["pixels"].auroc < 0.1
    assert found["pixels"].suspicious
    assert found["pixels"].median["Normal"] > found["pixels"].median["Pneumonia"]


def test_image_size_tells_the_classes_of_the_published_set_apart(real_data: Path) -> None:
    found = {s.property: s for s in _audit(real_data / "originals").shortcuts}
    assert found["pixels"].auroc < 0.1
    assert found["pixels"].suspicious
    assert found["pixels"].median["Normal"] > found["pixels"].median["Pneumonia"]


def test_a_property_that_says_nothing_is_no_shortcut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / label).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (40 + i, 60), dtype=np.uint8)).save(tmp_path / label / f"{i}.png")
    found = _audit(tmp_path)
    assert {s.property: s.auroc for s in found.shortcuts}["height"] == 0.5
    assert not any(s.suspicious for s in found.shortcuts)
    assert found.without_patient == 40


@pytest.mark.slow
def test_the_real_training_set_has_copies_inside_training_and_no_other_fault(real_data: Path) -> None:
    found = _audit(real_data / "chest_xray_224")
    assert sum(len(c.files) for c in found.exact_duplicates) - len(found.exact_duplicates) == 26
    assert found.near_duplicates == []
    assert found.leakage == []
    assert found.sizes == {"Normal": {"224 x 224": 1349}, "Pneumonia": {"224 x 224": 3883}}
    # The images are all of one size; how well they compress still tells the classes apart.
    assert [s.property for s in found.shortcuts if s.suspicious] == ["file size", "bytes per pixel"]


def _run(data: Path, out: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--data", str(data), "--out", str(out), *options])
    return result.exit_code, result.output


def test_findings_fail_the_command_only_with_strict(radiographs: Path, tmp_path: Path) -> None:
    assert _run(radiographs, tmp_path / "out", "--strict")[0] == 0
    shutil.copy(_first(radiographs / "train/NORMAL"), _into_test(radiographs, "IM-9999-0001.jpeg"))
    code, output = _run(radiographs, tmp_path / "out")
    assert code == 0
    assert "are the same file" in output
    assert RESEARCH_USE in output
    assert _run(radiographs, tmp_path / "out", "--strict")[0] == 1


def test_the_page_is_whole_in_itself_and_names_what_was_found(radiographs: Path, tmp_path: Path) -> None:
    with Image.open(_first(radiographs / "train/NORMAL")) as image:
        image.resize((400, 300)).save(_into_test(radiographs, "IM-9999-0001.png"))
    (radiographs / "train/NORMAL/<b>.png").write_bytes(b"no image")
    assert _run(radiographs, tmp_path / "out")[0] == 0
    page = (tmp_path / "out" / "audit.html").read_text()
    html.parser.HTMLParser().feed(page)
    assert "IM-9999-0001.png are copies of one radiograph" in page
    assert RESEARCH_USE in page
    assert "&lt;b&gt;.png" in page
    assert "<b>.png" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    shown = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    # Normal and Pneumonia in rows of eight, and the one pair of copies.
    assert shown == [(1056, 292), (1056, 292), (264, 146)]


def test_the_json_holds_every_file_and_finding(radiographs: Path, tmp_path: Path) -> None:
    shutil.copy(_first(radiographs / "train/NORMAL"), _into_test(radiographs, "IM-9999-0001.jpeg"))
    _run(radiographs, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(found["files"]) == 21
    assert len(found["leakage"]) == 1
    assert found["research_use"] == RESEARCH_USE
    assert {
        "formats",
        "sizes",
        "shortcuts",
        "exact_duplicates",
        "near_duplicates",
        "unreadable",
        "counts",
    } <= found.keys()


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    code, output = _run(tmp_path / "absent", tmp_path / "out")
    assert code == 1
    assert output.strip().count("\n") == 0
    assert "no such folder" in output


def _set_of(radiographs: list[np.ndarray], folder: Path) -> Path:
    for number, image in enumerate(radiographs):
        path = folder / ("NORMAL" if number % 2 else "PNEUMONIA") / f"IM-{number:04d}-0001.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_pictures_unlike_the_rest_are_named(radiographs: Path, tmp_path: Path) -> None:
    """Four renditions each of twenty radiographs, of which one is inverted, one mirrored, and one no chest."""
    images = [load_radiograph(file, COMPARED_AS)[0] for file in sorted(radiographs.rglob("*.jpeg"))]
    many = [np.roll(image, shift, axis=(0, 1)) for shift in ((0, 0), (5, 3), (-4, 6), (3, -7)) for image in images]
    many[7], many[11] = 255 - many[7], many[11][:, ::-1]
    many[13] = np.random.default_rng(0).integers(0, 256, many[13].shape, dtype=np.uint8)
    found = audit(find_radiographs(_set_of(many, tmp_path / "many")), ReferenceTraits())
    assert [Path(file).stem for file in found.inverted] == ["IM-0007-0001"]
    assert "IM-0011-0001" in [Path(file).stem for file in found.mirrored]
    assert len(found.mirrored) <= 3
    assert Path(found.novel[0][0]).stem == "IM-0013-0001"
    assert found.novel[0][1] > 1


def test_of_a_few_radiographs_none_is_called_unlike_the_rest(radiographs: Path) -> None:
    found = _audit(radiographs)
    assert (found.inverted, found.mirrored, found.novel) == ([], [], [])


def test_a_flat_picture_is_unreadable(radiographs: Path) -> None:
    Image.new("L", (64, 64), 90).save(radiographs / "train/NORMAL/IM-0001-0001.png")
    assert [f["reason"].split(" (")[0] for f in _audit(radiographs).unreadable] == ["the picture is flat: 1 grey level"]
