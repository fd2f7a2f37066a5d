"""Phantoms: laid out like the Kaggle set, the same every time, and without shortcuts between the classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from finetune import phantom
from finetune.phantom import draw_phantom, draw_phantom_with_opacity, plan_phantoms, write_phantoms

COUNT, SEED = 200, 7
Twins = list[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]]  # healthy, diseased, opacity
NAMES = {
    "NORMAL": re.compile(r"((?:NORMAL2-)?IM-\d{4})-\d{4}\.png"),
    "PNEUMONIA": re.compile(r"(person\d+)_(?:bacteria|virus)_\d+\.png"),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set of 200 phantoms."""
    folder = tmp_path_factory.mktemp("phantoms") / "chest_xray"
    made = write_phantoms(folder, count=COUNT, seed=SEED)
    assert not made.already_there
    assert sum(sum(of_class.values()) for of_class in made.counts.values()) == COUNT
    return folder


@pytest.fixture(scope="module")
def twins() -> Twins:
    """Nine patients, viral and bacterial."""
    pairs = []
    for patient in range(9):
        healthy, none = draw_phantom_with_opacity(SEED, patient, pneumonia=False, patient=patient)
        assert not none.any(), "a normal has no opacity"
        pairs.append((healthy, *draw_phantom_with_opacity(SEED, patient, pneumonia=True, patient=patient)))
    return pairs


@pytest.fixture
def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the drawing, where a test is about files and not about pixels."""
    monkeypatch.setattr(phantom, "draw_phantom", lambda seed, *_, **__: np.full((2, 3), seed, np.uint8))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_default_set_is_imbalanced_like_the_kaggle_set() -> None:
    counts = Counter(image.path.parent.as_posix() for image in plan_phantoms(720))
    assert counts == {
        "train/NORMAL": 151,
        "train/PNEUMONIA": 453,
        "val/NORMAL": 8,
        "val/PNEUMONIA": 8,
        "test/NORMAL": 40,
        "test/PNEUMONIA": 60,
    }


def test_no_patient_appears_in_two_splits_and_some_have_several_images() -> None:
    planned = list(plan_phantoms(720))
    assert len({image.path for image in planned}) == 720
    homes: dict[str, set[str]] = {}
    images: Counter[str] = Counter()
    for image in planned:
        split, finding, name = image.path.parts
        match = NAMES[finding].fullmatch(name)
        assert match, f"{name} is not a name of the Kaggle set"
        homes.setdefault(match[1], set()).add(split)
        images[match[1]] += 1
    assert all(len(splits) == 1 for splits in homes.values())
    assert set(images.values()) == {1, 2, 3}
    assert len(images) == len({image.patient for image in planned}), "the name tells the patient"


def test_a_longer_set_begins_with_the_shorter_one() -> None:
    assert list(plan_phantoms(720))[:COUNT] == list(plan_phantoms(COUNT))


def test_files_are_grey_radiographs_of_varied_size_at_their_planned_places(drawn: Path) -> None:
    files = sorted(path.relative_to(drawn) for path in drawn.rglob("*.png"))
    assert files == sorted(image.path for image in plan_phantoms(COUNT))
    sizes = set()
    for file in files:
        with Image.open(drawn / file) as radiograph:
            assert (radiograph.format, radiograph.mode) == ("PNG", "L")
            sizes.add(radiograph.size)
    assert len(sizes) > COUNT / 2
    assert all(320 <= max(size) <= 576 for size in sizes)


def test_an_image_depends_on_seed_and_index_alone(drawn: Path) -> None:
    for image in [*plan_phantoms(COUNT)][::50]:
        again = draw_phantom(SEED, image.index, pneumonia=image.pneumonia, patient=image.patient)
        with Image.open(drawn / image.path) as stored:
            np.testing.assert_array_equal(np.asarray(stored), again)
    other = draw_phantom(SEED + 1, image.index, pneumonia=image.pneumonia, patient=image.patient)
    assert other.shape != again.shape or (other != again).any()


def test_a_shorter_set_of_the_same_seed_has_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "set", count=40, seed=SEED)
    for image in plan_phantoms(40):
        assert (tmp_path / "set" / image.path).read_bytes() == (drawn / image.path).read_bytes()


@pytest.mark.parametrize(("statistic", "limit"), [(np.mean, 0.65), (np.std, 0.70)], ids=["mean", "deviation"])
def test_overall_grey_levels_do_not_give_the_class_away(
    drawn: Path, statistic: Callable[..., Any], limit: float
) -> None:
    files = sorted(drawn.rglob("*.png"))
    scores = [statistic(np.asarray(Image.open(file))) for file in files]
    auroc = roc_auc_score([file.parent.name == "PNEUMONIA" for file in files], scores)
    assert max(auroc, 1 - auroc) < limit


def test_pneumonia_only_brightens_and_only_where_the_opacity_is(twins: Twins) -> None:
    for healthy, diseased, opacity in twins:
        assert healthy.shape == diseased.shape == opacity.shape
        assert 0 < opacity.max() <= 1
        np.testing.assert_array_equal(healthy[opacity == 0], diseased[opacity == 0])
        assert (diseased >= healthy).all()
        assert (diseased > healthy)[opacity > 0.3].mean() > 0.9


def test_the_opacity_lies_where_the_healthy_twin_has_dark_lungs(twins: Twins) -> None:
    for healthy, _, opacity in twins:
        height, width = healthy.shape
        chest = healthy[height // 8 : height * 7 // 8, width // 6 : width * 5 // 6]
        assert 0.003 < (opacity > 0.1).mean() < 0.4
        assert healthy[opacity > 0.1].mean() < np.median(chest)
        assert not opacity[0].any(), "nothing in the neck"
        assert not opacity[:, [0, -1]].any(), "nothing outside the chest"


@pytest.mark.usefixtures("without_drawing")
def test_a_second_call_finds_the_set_and_draws_nothing(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "set"), "--count", "40"]
    first = CliRunner().invoke(phantom.main, arguments)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = CliRunner().invoke(phantom.main, arguments)
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert "now holds 40 phantoms" in first.output
    assert "already holds 40 phantoms" in second.output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


@pytest.mark.usefixtures("without_drawing")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["radiograph.png", "phantoms.json"])
def test_a_folder_of_someone_else_is_never_touched(tmp_path: Path, name: str, force: bool) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text('{"count": 40}')
    with pytest.raises(click.ClickException, match=r"mine holds something other than phantoms; name another folder"):
        write_phantoms(folder, count=40, force=force)
    assert contents(tmp_path) == {f"mine/{name}": b'{"count": 40}'}


@pytest.mark.usefixtures("without_drawing")
def test_another_set_is_replaced_only_with_force(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "set", count=40, seed=1)
    before = contents(tmp_path)
    with pytest.raises(click.ClickException, match="--force"):
        write_phantoms(tmp_path / "set", count=40, seed=2)
    assert contents(tmp_path) == before
    assert not write_phantoms(tmp_path / "set", count=40, seed=2, force=True).already_there
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert after != before


@pytest.mark.usefixtures("without_drawing")
def test_a_set_that_lost_an_image_is_not_taken_for_complete(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "set", count=40)
    next((tmp_path / "set").rglob("*.png")).unlink()
    with pytest.raises(click.ClickException, match="--force"):
        write_phantoms(tmp_path / "set", count=40)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type) -> None:
    def interrupted(seed: int, index: int, **_: object) -> NDArray[np.uint8]:
        if index == 20:
            raise fault("while drawing")
        return np.zeros((2, 3), np.uint8)

    monkeypatch.setattr(phantom, "draw_phantom", interrupted)
    with pytest.raises(fault):
        write_phantoms(tmp_path / "set", count=40)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = CliRunner().invoke(phantom.main, ["--out", str(tmp_path / "file" / "set"), "--count", "40"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: cannot write")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(("count", "seed"), [(39, 0), (40, -1)])
def test_a_count_or_seed_out_of_range_is_refused(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(ValueError, match="at least 40"):
        write_phantoms(tmp_path / "set", count=count, seed=seed)
