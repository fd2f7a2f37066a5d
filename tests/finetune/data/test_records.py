"""Records, patients and splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.folders import scan
from finetune.data.names import file_name
from finetune.data.patients import patient_of
from finetune.data.records import merge_duplicates, split_by_patient
from finetune.errors import DataError


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100).save(path)
    return root


def _many(root: Path, folder: str = "train", patients: int = 20, images: int = 2) -> Path:
    for i in range(patients):
        for j in range(images):
            _touch(root, f"{folder}/NORMAL/IM-{i:04}-{j:04}.png", f"{folder}/PNEUMONIA/person{i}_virus_{j}.png")
    return root


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person123_bacteria_4.jpeg", "person123"),
        ("person1_virus_6.jpeg", "person1"),
        ("person447_virus_921_1.jpeg", "person447"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0011-0001-0002.jpeg", "IM-0011"),
        ("NORMAL2-IM-1427-0001.jpeg", "NORMAL2-IM-1427"),
        ("scan.png", None),
        ("person123.jpeg", None),
    ],
)
def test_a_file_name_tells_its_patient(name: str, patient: str | None) -> None:
    assert patient_of(Path(name)) == patient


def test_every_real_file_name_tells_its_patient(real_data: Path) -> None:
    radiographs = scan(real_data / "chest_xray_224").radiographs
    assert len(radiographs) == 5232
    assert [radiograph.path.name for radiograph in radiographs if "/" in radiograph.patient] == []
    assert sum(radiograph.label == 0 for radiograph in radiographs) == 1349


def test_no_patient_is_on_two_sides_and_the_classes_keep_their_shares(real_data: Path) -> None:
    radiographs = scan(real_data / "chest_xray_224").radiographs
    splits = split_by_patient(radiographs, val_fraction=0.15, seed=0)
    sides = [{radiographs[i].patient for i in part} for part in (splits.train, splits.val)]
    assert not sides[0] & sides[1]
    assert len(splits.train) + len(splits.val) == len(radiographs)
    shares = [np.mean([radiographs[i].label for i in part]) for part in (splits.train, splits.val)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_the_same_seed_gives_the_same_split_and_another_seed_another(tmp_path: Path) -> None:
    radiographs = scan(_many(tmp_path)).radiographs
    first, again, other = (
        split_by_patient(radiographs, val_fraction=0.2, seed=seed).val.tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_official_val_folder_joins_the_training_material(tmp_path: Path) -> None:
    _many(tmp_path)
    _touch(tmp_path, "val/NORMAL/NORMAL2-IM-1427-0001.png", "val/PNEUMONIA/person1946_bacteria_4874.png")
    radiographs = scan(tmp_path).radiographs
    splits = split_by_patient(radiographs, val_fraction=0.2, seed=0)
    assert len(splits.train) + len(splits.val) == 82
    assert len(splits.test) == 0


def test_a_patient_of_the_test_split_is_taken_out_of_training(tmp_path: Path) -> None:
    _many(tmp_path)
    _touch(tmp_path, "test/PNEUMONIA/person3_virus_9.png", "test/NORMAL/IM-9000-0001.png")
    radiographs = scan(tmp_path).radiographs
    splits = split_by_patient(radiographs, val_fraction=0.2, seed=0)
    assert splits.leaked_patients == ("person3",)
    kept = {radiographs[i].patient for i in (*splits.train, *splits.val)}
    assert "person3" not in kept
    assert len(splits.test) == 2


def test_identical_files_count_as_one_patient_whatever_their_names_say(tmp_path: Path) -> None:
    radiographs = scan(_many(tmp_path, patients=5, images=1)).radiographs
    digests = [radiograph.path.name for radiograph in radiographs]
    digests[1] = digests[0]
    digests[3] = digests[1]
    merged = merge_duplicates(radiographs, digests)
    assert merged[0].patient == merged[1].patient == merged[3].patient != merged[2].patient


def test_near_copies_count_as_one_patient_with_all_their_other_radiographs(tmp_path: Path) -> None:
    radiographs = scan(_many(tmp_path, patients=3, images=2)).radiographs  # patients 0 0 1 1 2 2 of each class
    digests = [radiograph.path.as_posix() for radiograph in radiographs]
    merged = merge_duplicates(radiographs, digests, [(1, 4)])
    assert len({merged[i].patient for i in (0, 1, 4, 5)}) == 1
    assert [merged[i].patient for i in (2, 3)] == [radiographs[2].patient] * 2


@pytest.mark.parametrize("layout", ["chest_xray/train", "train", "."])
def test_the_archive_as_unpacked_a_split_layout_and_bare_classes_are_all_read(tmp_path: Path, layout: str) -> None:
    _touch(tmp_path / layout, "NORMAL/a.png", "pneumonia/b.JPEG")
    _touch(tmp_path / layout, "NORMAL/.hidden.png")
    (tmp_path / layout / "NORMAL" / "Thumbs.db").write_text("x")
    assert [radiograph.label for radiograph in scan(tmp_path).radiographs] == [0, 1]


def test_dicom_files_are_found_by_their_suffix_or_their_first_bytes(tmp_path: Path) -> None:
    _touch(tmp_path, "NORMAL/a.png", "PNEUMONIA/b.png")
    dicom = b"\0" * 128 + b"DICM"
    for name in ("c.dcm", "d.DICOM", "IM000001", "1.2.840.10008"):
        (tmp_path / "NORMAL" / name).write_bytes(dicom)
    for name in ("LICENSE", "notes.1"):
        (tmp_path / "NORMAL" / name).write_text("not an image")
    found = {radiograph.path.name for radiograph in scan(tmp_path).radiographs if radiograph.label == 0}
    assert found == {"a.png", "c.dcm", "d.DICOM", "IM000001", "1.2.840.10008"}


def test_a_file_whose_name_carries_no_patient_is_a_patient_of_its_own_and_says_so(tmp_path: Path) -> None:
    _touch(tmp_path, "NORMAL/a.png", "NORMAL/b.png", "PNEUMONIA/person1_virus_6.png")
    radiographs = scan(tmp_path).radiographs
    assert [radiograph.patient_known for radiograph in radiographs] == [False, False, True]
    assert len({radiograph.patient for radiograph in radiographs}) == 3


def test_a_written_name_is_relative_to_the_root_and_absolute_elsewhere(tmp_path: Path) -> None:
    assert file_name(tmp_path / "a" / "b.png", tmp_path) == "a/b.png"
    assert file_name(tmp_path / "b.png", tmp_path / "a") == (tmp_path / "b.png").as_posix()


def test_a_missing_folder_an_empty_one_and_a_single_class_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as missing:
        scan(tmp_path / "absent")
    assert "absent" in str(missing.value)
    with pytest.raises(DataError, match="no images to train on"):
        scan(tmp_path)
    _touch(tmp_path, "train/NORMAL/a.png")
    with pytest.raises(DataError, match="no Pneumonia images"):
        scan(tmp_path)


def test_too_few_patients_to_validate_on_are_refused(tmp_path: Path) -> None:
    radiographs = scan(_many(tmp_path, patients=3)).radiographs
    with pytest.raises(DataError, match="3 Normal patients are too few"):
        split_by_patient(radiographs, val_fraction=0.15, seed=0)
