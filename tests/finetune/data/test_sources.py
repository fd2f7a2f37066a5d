"""What `--data` may name: a folder, a table, PneumoniaMNIST."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import medmnist
import numpy as np
import pytest
from PIL import Image

from finetune.data.cache import build_cache
from finetune.data.labels import LabelNames
from finetune.data.sources import find_radiographs
from finetune.errors import DataError
from tests.helpers.radiographs import UNUSUAL_NAMES, grey
from xray_client import Preprocessing


def _table(folder: Path, *lines: str, name: str = "set.csv") -> Path:
    """A CSV of `lines`; every file that it names below the folder exists, with pixels of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, line in enumerate(lines[1:]):
        path = folder / line.split(",")[0]
        if path.suffix == ".png" and "absent" not in path.name:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey(5 * i, (9, 9))).save(path)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def test_a_table_gives_path_label_patient_and_split(tmp_path: Path) -> None:
    table = _table(
        tmp_path, "path,label,patient,split", "a.png,Normal,P1,train", "b/c.png,1,P2,test", "d.png,1,P3,train"
    )
    source = find_radiographs(table)
    assert [(r.path, r.label, r.patient, r.split) for r in source.radiographs] == [
        (tmp_path / "a.png", 0, "P1", "train"),
        (tmp_path / "b/c.png", 1, "P2", "test"),
        (tmp_path / "d.png", 1, "P3", "train"),
    ]
    assert (source.name, source.root, source.notes, source.has_val) == ("set", tmp_path, (), False)


def test_further_columns_of_a_table_are_metadata(tmp_path: Path) -> None:
    source = find_radiographs(_table(tmp_path, "path,label,Age,projection", "a.png,0,4,AP", "b.png,1,,PA"))
    assert [dict(r.metadata) for r in source.radiographs] == [
        {"age": "4", "projection": "AP"},
        {"projection": "PA"},
    ]


def test_a_table_with_a_val_keeps_its_own_splits(tmp_path: Path) -> None:
    lines = "path,label,split", "a.png,0,train", "b.png,1,train", "c.png,0,validation", "d.png,1,VAL"
    source = find_radiographs(_table(tmp_path, *lines))
    assert [radiograph.split for radiograph in source.radiographs] == ["train", "train", "val", "val"]
    assert source.has_val


def test_without_a_patient_the_file_name_is_asked_and_then_each_file_is_a_patient(tmp_path: Path) -> None:
    lines = "path,label,patient", "person7_virus_1.png,1,", "person7_virus_2.png,1,", "x.png,0,", "y.png,0,P9"
    source = find_radiographs(_table(tmp_path, *lines))
    assert [r.patient for r in source.radiographs] == ["person7", "person7", "x.png", "P9"]
    assert [r.patient_known for r in source.radiographs] == [True, True, False, True]
    assert source.notes[0].startswith("1 of 4 radiographs carry no patient")


def test_a_table_may_name_files_elsewhere_and_its_own_in_both_ways(tmp_path: Path) -> None:
    table = _table(tmp_path / "tables", "path,label", f"{tmp_path}/tables/a.png,0", f"{tmp_path}/elsewhere/b.png,1")
    source = find_radiographs(table)
    cache = build_cache(source.radiographs, Preprocessing(), source.root, tmp_path / "cache")
    assert len(cache.radiographs) == 2


def test_a_spreadsheets_byte_order_mark_capitals_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    table = _table(tmp_path, "\ufeffPath, Label", "a.png, NORMAL", "", "b.png, pneumonia")
    assert [radiograph.label for radiograph in find_radiographs(table).radiographs] == [0, 1]


def test_a_line_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    table = _table(tmp_path, "path,label", "a.png,0", "b.png,1", "./a.png,Normal")
    assert len(find_radiographs(table).radiographs) == 2


def test_a_blank_cell_means_not_known(tmp_path: Path) -> None:
    lines = ["path,label,patient,split", "a.png,0,,", "b.png,,P1,train", ",1,P2,train", "person3_virus_1.png,1,,val"]
    source = find_radiographs(_table(tmp_path, *lines))
    assert [(r.path.name, r.patient, r.patient_known, r.split) for r in source.radiographs] == [
        ("a.png", "a.png", False, "train"),
        ("person3_virus_1.png", "person3", True, "val"),
    ]
    assert [(entry.file, entry.reason) for entry in source.left_out] == [("b.png", "no label"), ("line 4", "no path")]


def test_labels_of_a_table_are_mapped_or_left_out_by_name(tmp_path: Path) -> None:
    table = _table(tmp_path, "path,label", "a.png,healthy", "b.png,COVID19", "c.png,effusion", "d.png,pneumonia")
    labels = LabelNames.parse("Healthy=Normal,covid19=Pneumonia,effusion=-")
    source = find_radiographs(table, labels=labels)
    assert [(r.path.name, r.label) for r in source.radiographs] == [("a.png", 0), ("b.png", 1), ("d.png", 1)]
    assert [(entry.file, entry.reason) for entry in source.left_out] == [("c.png", "class left out by --labels")]


@pytest.mark.parametrize("name", UNUSUAL_NAMES)
def test_a_table_names_any_file_that_the_system_can_hold(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    Image.new("L", (8, 8)).save(path, format="png")
    Image.new("L", (8, 8), 9).save(tmp_path / "b.png")
    with (tmp_path / "set.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("path", "label"), (os.fsdecode(name), 1), ("b.png", 0)])
    source = find_radiographs(tmp_path / "set.csv")
    assert [radiograph.path for radiograph in source.radiographs] == [path, tmp_path / "b.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("path,class", "a.png,0"), r"set\.csv: no column 'label'"),
        (("file,label", "a.png,0"), r"set\.csv: no column 'path'"),
        (("path,label", "a.png,0", "b.png,sick"), r"set\.csv, line 3: unknown label 'sick'"),
        (("path,label,split", "a.png,0,train", "b.png,1,tests"), r"set\.csv, line 3: unknown split 'tests'"),
        (("path,label", "a.png,0", "b.png,1", "a.png,1"), r"set\.csv, line 4: a\.png is on line 2 already"),
        (("path,label", "a.png,0"), r"set\.csv: no Pneumonia images"),
        (("path,label",), r"set\.csv: no images to train on"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused_with_its_line(
    tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        find_radiographs(_table(tmp_path, *lines))
    assert "\n" not in str(refused.value)


def test_a_table_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        find_radiographs(tmp_path / "absent.csv")
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="no column 'path'"):
        find_radiographs(tmp_path / "image.csv")


def test_a_file_that_a_table_names_in_vain_counts_as_unreadable(tmp_path: Path) -> None:
    rows = [f"{i}.png,{i % 2}" for i in range(30)]
    source = find_radiographs(_table(tmp_path / "data", "path,label", *rows, "absent.png,1"))
    cache = build_cache(source.radiographs, Preprocessing(), source.root, tmp_path / "cache")
    assert len(cache.radiographs) == 30
    assert cache.unreadable == [("absent.png", "No such file or directory")]


def _archive(root: Path, size: int = 28) -> dict[str, np.ndarray]:
    """A tiny archive in medmnist's format."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 8), ("val", 4), ("test", 2)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    root.mkdir(exist_ok=True)
    np.savez(root / ("pneumoniamnist.npz" if size == 28 else f"pneumoniamnist_{size}.npz"), **arrays)
    return arrays


@pytest.mark.parametrize(("name", "size"), [("pneumoniamnist", 28), ("PneumoniaMNIST:64", 64)])
def test_pneumoniamnist_keeps_its_pixels_labels_and_splits(tmp_path: Path, name: str, size: int) -> None:
    arrays = _archive(tmp_path / "medmnist", size)
    source = find_radiographs(name, medmnist_root=tmp_path / "medmnist")
    assert source.has_val
    for split in ("train", "val", "test"):
        of_split = sorted((r for r in source.radiographs if r.split == split), key=lambda r: r.path.name)
        assert [r.label for r in of_split] == arrays[f"{split}_labels"].ravel().tolist()
        pixels = np.stack([np.asarray(Image.open(r.path)) for r in of_split])
        np.testing.assert_array_equal(pixels, arrays[f"{split}_images"])


def test_pneumoniamnist_says_that_it_names_no_patients(tmp_path: Path) -> None:
    _archive(tmp_path / "medmnist")
    source = find_radiographs("pneumoniamnist", medmnist_root=tmp_path / "medmnist")
    assert "names no patients" in source.notes[0]
    assert not any(radiograph.patient_known for radiograph in source.radiographs)
    assert len({radiograph.patient for radiograph in source.radiographs}) == len(source.radiographs)


def test_pneumoniamnist_is_unpacked_once(tmp_path: Path) -> None:
    _archive(tmp_path / "medmnist")
    first = find_radiographs("pneumoniamnist", medmnist_root=tmp_path / "medmnist")
    (tmp_path / "medmnist" / "pneumoniamnist.npz").unlink()
    assert find_radiographs("pneumoniamnist", medmnist_root=tmp_path / "medmnist") == first


def test_a_damaged_archive_is_refused_by_name_and_leaves_nothing_half_unpacked(tmp_path: Path) -> None:
    _archive(tmp_path / "medmnist")
    archive = tmp_path / "medmnist" / "pneumoniamnist.npz"
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz: is damaged .*remove it"):
        find_radiographs("pneumoniamnist", medmnist_root=tmp_path / "medmnist")
    assert [path.name for path in (tmp_path / "medmnist").iterdir()] == ["pneumoniamnist.npz"]


def test_a_download_that_fails_is_one_line_and_leaves_no_half_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(dataset: medmnist.PneumoniaMNIST) -> None:
        """A fault on demand: half of the file came, then the network went."""
        (Path(dataset.root) / "pneumoniamnist.npz").write_bytes(b"half")
        raise RuntimeError("\nAutomatic download failed!\n")

    monkeypatch.setattr(medmnist.PneumoniaMNIST, "download", cut_off)
    with pytest.raises(DataError, match=r"could not be downloaded .*zenodo") as failed:
        find_radiographs("pneumoniamnist", medmnist_root=tmp_path / "medmnist")
    assert "\n" not in str(failed.value)
    assert list((tmp_path / "medmnist").iterdir()) == []


def test_a_size_that_pneumoniamnist_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no size 512 .*28, 64, 128, 224"):
        find_radiographs("pneumoniamnist:512", medmnist_root=tmp_path)


def test_a_folder_is_found_as_before(twenty_radiographs: Path) -> None:
    source = find_radiographs(twenty_radiographs)
    assert (source.name, len(source.radiographs), source.has_val, source.notes) == ("chest_xray", 20, False, ())
