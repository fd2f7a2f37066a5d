"""Radiographs of a folder: every file is taken, or left out with the reason."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from finetune.data.folders import FEW_TO_VALIDATE, FolderScan, scan
from finetune.data.labels import LabelNames
from finetune.data.left_out import left_out_lines, write_left_out
from finetune.data.names import shown
from finetune.data.patients import dicom_patient
from finetune.errors import DataError, SettingsError
from tests.helpers.dicom_files import encoded, made
from tests.helpers.radiographs import UNUSUAL_NAMES, grey

BOTH = ("NORMAL/a.png", "PNEUMONIA/b.png")


def _files(root: Path, *names: str) -> Path:
    """Files that nobody opens here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def _left(found: FolderScan) -> dict[str, str]:
    return {entry.file: entry.reason for entry in found.left_out}


def _taken(found: FolderScan, root: Path) -> dict[str, tuple[str, int]]:
    return {r.path.relative_to(root).as_posix(): (r.split, r.label) for r in found.radiographs}


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("NORMAL/a.png", "normal/c.png", "PNEUMONIA/b.png"), {"NORMAL/a.png", "normal/c.png", "PNEUMONIA/b.png"}),
        ((*BOTH, "PNEUMONIA/virus/c.png", "PNEUMONIA/virus/old/d.png"),
         {*BOTH, "PNEUMONIA/virus/c.png", "PNEUMONIA/virus/old/d.png"}),
        ((*BOTH, "NORMAL/a.jfif", "NORMAL/a.JPE"), {*BOTH, "NORMAL/a.jfif", "NORMAL/a.JPE"}),
    ],
)  # fmt: skip
def test_subfolders_spellings_and_every_suffix_of_the_reader_are_taken(
    tmp_path: Path, names: tuple[str, ...], taken: set[str]
) -> None:
    found = scan(_files(tmp_path, *names))
    assert set(_taken(found, tmp_path)) == taken
    assert found.left_out == []


@pytest.mark.parametrize("spelling", ["val", "valid", "validation", "Valid"])
def test_every_spelling_of_the_validation_split_is_val(tmp_path: Path, spelling: str) -> None:
    found = scan(_files(tmp_path, *(f"{split}/{name}" for split in ("Train", spelling) for name in BOTH)))
    assert sorted(split for split, _ in _taken(found, tmp_path).values()) == ["train", "train", "val", "val"]
    assert found.left_out == []


def test_the_folders_of_the_splits_may_be_inside_those_of_the_classes(tmp_path: Path) -> None:
    found = scan(_files(tmp_path, "NORMAL/train/a.png", "NORMAL/test/b.png", "PNEUMONIA/train/c.png"))
    assert _taken(found, tmp_path) == {
        "NORMAL/train/a.png": ("train", 0), "NORMAL/test/b.png": ("test", 0), "PNEUMONIA/train/c.png": ("train", 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "left", "reason"),
    [
        ("COVID/c.png", "COVID/", "folder of no known class, which --labels can name"),
        ("0/c.png", "0/", "folder of no known class, which --labels can name"),
        ("NORMAL/masks/a.png", "NORMAL/masks/", "folder of masks"),
        ("PNEUMONIA/normal/a.png", "PNEUMONIA/normal/", "folder of the class Normal inside another class"),
        ("NORMAL/.DS_Store", "NORMAL/.DS_Store", "hidden"),
        (".git/x/config", ".git/", "hidden"),
        ("NORMAL/.old/a.png", "NORMAL/.old/", "hidden"),
        ("NORMAL/Thumbs.db", "NORMAL/Thumbs.db", "not an image: .db"),
        ("NORMAL/README", "NORMAL/README", "not an image: no suffix, and not DICOM"),
        ("NORMAL/a.overlay.png", "NORMAL/a.overlay.png", "an overlay of this project"),
        ("NORMAL/DICOMDIR", "NORMAL/DICOMDIR", "a table of contents of DICOM files"),
        ("loose.png", "loose.png", "beside the folders of the classes"),
        ("README.md", "README.md", "not an image: .md"),
    ],
)
def test_whatever_is_not_taken_is_named_with_the_reason(tmp_path: Path, name: str, left: str, reason: str) -> None:
    found = scan(_files(tmp_path, *BOTH, name))
    assert set(_taken(found, tmp_path)) == set(BOTH)
    assert _left(found) == {left: reason}


@pytest.mark.parametrize(
    ("name", "left", "reason"),
    [
        ("NORMAL/c.png", "NORMAL/", "beside the folders of the splits"),
        ("labels.txt", "labels.txt", "beside the folders of the splits"),
        ("train/NORMAL/test/c.png", "train/NORMAL/test/", "folder of a split inside a class"),
        ("train/c.png", "train/c.png", "beside the folders of the classes"),
    ],
)
def test_beside_and_inside_the_splits_nothing_is_guessed(tmp_path: Path, name: str, left: str, reason: str) -> None:
    found = scan(_files(tmp_path, *(f"train/{both}" for both in BOTH), name))
    assert len(found.radiographs) == 2
    assert _left(found) == {left: reason}


def test_a_linked_folder_is_followed_once_and_a_loop_ends(tmp_path: Path) -> None:
    _files(tmp_path, "set/NORMAL/a.png", "set/PNEUMONIA/b.png", "elsewhere/c.png")
    (tmp_path / "set/NORMAL/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/NORMAL/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/PNEUMONIA/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/PNEUMONIA/gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "set/PNEUMONIA/pipe.png")
    found = scan(tmp_path / "set")
    assert len(found.radiographs) == 3
    assert _left(found) == {
        "NORMAL/loop/": "a folder that is read already, by another name",
        "PNEUMONIA/again/": "a folder that is read already, by another name",
        "PNEUMONIA/gone.png": "link to nothing",
        "PNEUMONIA/pipe.png": "not a file",
    }


def test_labels_name_the_class_of_further_folders_or_leave_them_out(tmp_path: Path) -> None:
    _files(tmp_path, *BOTH, "COVID19/c.png", "Viral Pneumonia/images/d.png", "Lung_Opacity/e.png", "Lung_Opacity/f.png")
    found = scan(tmp_path, LabelNames.parse("covid19=Pneumonia,Viral Pneumonia=pneumonia,Lung_Opacity=-"))
    assert [(r.path.name, r.label) for r in found.radiographs] == [
        ("a.png", 0), ("c.png", 1), ("b.png", 1), ("d.png", 1),
    ]  # fmt: skip
    assert left_out_lines(found.left_out) == ["left out, class left out by --labels: 2 files: Lung_Opacity/"]


def test_the_option_overrides_a_name_that_is_known(tmp_path: Path) -> None:
    _files(tmp_path, *BOTH, "PNEUMONIA/normal/c.png", "PNEUMONIA/old/d.png")
    found = scan(tmp_path, LabelNames.parse("old=-"))
    assert _left(found)["PNEUMONIA/old/"] == "class left out by --labels"
    assert len(found.radiographs) == 2


@pytest.mark.parametrize("text", ["COVID19", "COVID19=", "=Normal", "COVID19=sick", "a=Normal,A=Pneumonia"])
def test_a_list_of_labels_that_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="labels"):
        LabelNames.parse(text)


def test_a_name_in_labels_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--labels names 'covid', which is not there"):
        scan(_files(tmp_path, *BOTH), LabelNames.parse("COVID=Pneumonia"))


@pytest.mark.parametrize(
    ("normal", "pneumonia", "kept", "said"),
    [
        (8, 8, False, "(16 radiographs) is too small to validate on"),
        (FEW_TO_VALIDATE - 1, 2, True, ""),
        (FEW_TO_VALIDATE - 1, 1, False, "is too small"),
        (FEW_TO_VALIDATE + 1, 0, False, "has no Pneumonia"),
    ],
)
def test_a_val_folder_is_kept_if_it_is_large_enough_and_otherwise_it_is_said(
    tmp_path: Path, normal: int, pneumonia: int, kept: bool, said: str
) -> None:
    _files(tmp_path, *(f"train/{name}" for name in BOTH))
    _files(tmp_path, *(f"val/NORMAL/{i}.png" for i in range(normal)))
    found = scan(_files(tmp_path, *(f"val/PNEUMONIA/{i}.png" for i in range(pneumonia))))
    assert found.has_val is kept
    assert len(found.notes) == (0 if kept else 1)
    for note in found.notes:
        assert said in note


def test_a_dicom_files_patient_is_its_number_hashed(tmp_path: Path) -> None:
    def dicom(name: str, **elements: str) -> Path:
        dataset: Dataset = made(grey(100))
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(dataset))
        return tmp_path / name

    first, again = dicom("NORMAL/a.dcm", PatientID="4711"), dicom("NORMAL/IM0001", PatientID="4711 ")
    other, blank = (
        dicom("PNEUMONIA/b.dcm", PatientID="4711", IssuerOfPatientID="B"),
        dicom("PNEUMONIA/c.dcm", PatientID=" "),
    )
    assert dicom_patient(first) == "dicom-" + hashlib.sha256(b"\0" + b"4711").hexdigest()[:16]
    assert dicom_patient(first) == dicom_patient(again) != dicom_patient(other)
    assert dicom_patient(blank) is None
    found = scan(tmp_path)
    assert [radiograph.patient_known for radiograph in found.radiographs] == [True, True, True, False]
    assert not any("4711" in radiograph.patient for radiograph in found.radiographs)


def test_a_header_that_is_no_dicom_names_no_patient(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    assert dicom_patient(tmp_path / "a.dcm") is None


def test_the_summary_counts_by_reason_and_the_table_holds_everything(tmp_path: Path) -> None:
    names = [os.fsdecode(name).replace(".png", ".txt") for name in UNUSUAL_NAMES]
    found = scan(_files(tmp_path, *BOTH, *(f"NORMAL/{name}" for name in names)))
    (line,) = left_out_lines(found.left_out)
    assert line.startswith(f"left out, not an image: .txt: {len(names)} files: ")
    assert line.endswith(f" and {len(names) - 3} more")
    assert line.isprintable()
    write_left_out(tmp_path / "left_out.csv", found.left_out)
    text = (tmp_path / "left_out.csv").read_bytes()
    assert all(os.fsencode(name).replace(b'"', b'""') in text for name in names)


def test_a_name_is_shown_on_one_line() -> None:
    assert shown("M\udcfcller\n\x1b[31m.png") == r"M\xfcller\n\x1b[31m.png"
    assert shown("胸部 [1].png") == "胸部 [1].png"
