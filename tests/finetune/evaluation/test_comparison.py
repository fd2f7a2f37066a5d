"""Comparisons of models and subgroups: by hand, by scikit-learn, and through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from finetune.errors import SettingsError
from finetune.evaluate import main
from finetune.evaluation.comparison import Grouping, differences, predictive_values, subgroup_figures
from finetune.evaluation.metrics import Scores, summarise, summarise_predictions, weighted_auroc


def scores(probability: object, labels: object, *, threshold: float = 0.5, patients: object = None) -> Scores:
    probability = np.asarray(probability, dtype=float)
    patients = np.arange(len(probability)) if patients is None else np.asarray(patients)
    return Scores(probability, np.asarray(labels), patients, threshold)


def drawn(n: int, strength: float, seed: int) -> Scores:
    """A model whose probabilities lean towards the truth by `strength`."""
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.4).astype(int)
    logit = strength * (2 * labels - 1) + random.normal(size=n)
    return scores(1 / (1 + np.exp(-logit)), labels)


def test_the_area_is_scikit_learns_ties_and_weights_included() -> None:
    random = np.random.default_rng(0)
    probability, labels = np.round(random.random(200), 1), (random.random(200) < 0.3).astype(int)
    weights = random.integers(0, 4, (20, 200))
    expected = [roc_auc_score(labels, probability, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_auroc(labels, probability, weights), expected, rtol=0, atol=1e-12)
    assert np.isnan(weighted_auroc(labels, probability, np.where(labels == 1, 0, weights))).all()


def test_a_model_is_no_better_than_itself_and_a_stronger_one_is() -> None:
    weak, strong = drawn(400, 0.5, 1), drawn(400, 2.0, 1)
    same = differences(weak, weak)
    assert set(same) == {"accuracy", "sensitivity", "specificity", "auroc", "brier", "ece"}
    assert all(estimate == {"value": 0, "low": 0, "high": 0} for estimate in same.values())
    better = differences(strong, Scores(weak.probability, strong.labels, strong.patients, 0.5))
    assert better["auroc"]["low"] > 0
    assert better["brier"]["high"] < 0


def test_a_paired_interval_is_narrower_than_the_two_apart() -> None:
    model = drawn(300, 1.0, 2)
    nearly = Scores(np.clip(model.probability + 0.02, 0, 1), model.labels, model.patients, 0.5)
    paired = differences(model, nearly)["auroc"]
    alone = summarise(model)["auroc"]
    assert paired["high"] - paired["low"] < 0.2 * (alone["high"] - alone["low"])


def test_predictive_values_follow_bayes() -> None:
    model = scores([0.9] * 8 + [0.1] * 2 + [0.1] * 9 + [0.9], [1] * 10 + [0] * 10)
    found = predictive_values(model, 0.05)
    assert found["ppv"]["value"] == pytest.approx(0.8 * 0.05 / (0.8 * 0.05 + 0.1 * 0.95), abs=1e-6)
    assert found["npv"]["value"] == pytest.approx(0.9 * 0.95 / (0.9 * 0.95 + 0.2 * 0.05), abs=1e-6)
    assert found["ppv"]["low"] < found["ppv"]["value"] < found["ppv"]["high"]


@pytest.mark.parametrize(
    ("text", "cell", "group"),
    [
        ("view", "AP", "AP"),
        ("view", "", "not given"),
        ("view", None, "not given"),
        ("age:0,18,65", "0", "0 to below 18"),
        ("age:0,18,65", "17.9", "0 to below 18"),
        ("age:0,18,65", "18", "18 to below 65"),
        ("age:0,18,65", "65", "65 or more"),
        ("age:0,18,65", "-1", "not given"),
        ("age:0,18,65", "old", "not given"),
        ("Age:0,18", "20", "18 or more"),
    ],
)
def test_a_cell_belongs_to_a_group(text: str, cell: str | None, group: str) -> None:
    assert Grouping.parse(text).group(cell) == group


@pytest.mark.parametrize("text", ["", ":0,1", "age:", "age:5,1", "age:1,1", "age:a,b"])
def test_a_grouping_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--by"):
        Grouping.parse(text)


def test_a_subgroup_is_marked_only_where_it_is_worse_beyond_chance() -> None:
    random = np.random.default_rng(3)
    alike = drawn(600, 1.5, 4)
    names = [{"site": name} for name in random.choice(["a", "b", "c"], 600)]
    assert [group["worse"] for group in subgroup_figures(alike, names, [Grouping("site")])] == [[], [], []]
    worse = np.array([cells["site"] == "c" for cells in names])
    spoilt = scores(np.where(worse, random.random(600), alike.probability), alike.labels)
    marked = {group["group"]: group["worse"] for group in subgroup_figures(spoilt, names, [Grouping("site")])}
    assert (marked["a"], marked["b"]) == ([], [])
    assert "auroc" in marked["c"]


def test_false_alarms_are_as_rare_as_they_are_said_to_be() -> None:
    """40 evaluations of a model that is the same everywhere: two false ones are expected, seven would be one in 300."""
    alarms = 0
    for seed in range(40):
        model = drawn(300, 1.0, 100 + seed)
        names = [{"g": str(i)} for i in np.random.default_rng(seed).integers(0, 4, 300)]
        alarms += any(group["worse"] for group in subgroup_figures(model, names, [Grouping("g")], seed=seed))
    assert alarms < 7


def test_a_set_of_one_class_gives_what_it_can() -> None:
    sick = scores([0.9, 0.8, 0.2, 0.7], [1, 1, 1, 1])
    found = summarise_predictions(sick, decision=np.array([1, 1, 0, 1]))
    assert found["sensitivity"]["value"] == 0.75
    assert not {"specificity", "auroc", "auprc"} & set(found)
    assert set(differences(sick, sick)) == {"accuracy", "sensitivity", "brier", "ece"}


@pytest.fixture(scope="module")
def table(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms as a table with columns of their own; the names of some are in no encoding."""
    path = tmp_path_factory.mktemp("table") / "films.csv"
    files = sorted((phantoms / "test").rglob("*.png"))
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "patient_id", "View", "age"])
        for i, image in enumerate(files):
            rows.writerow([image, image.parent.name, f"p{i // 2}", ("AP", "PA")[i % 2], 3 * i])
    return path


def test_the_command_compares_divides_and_writes_every_answer(trained: Path, table: Path, tmp_path: Path) -> None:
    options = ["--checkpoint", trained, "--data", table, "--split", "all", "--against", "reference", "--by", "view",
               "--by", "age:0,30", "--prevalence", 0.1, "--check-images", 0, "--cache", tmp_path / "cache",
               "--out", tmp_path / "out"]  # fmt: skip
    done = CliRunner().invoke(main, [str(option) for option in options])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    count = figures["stages"]["after"]["images"]
    assert len(rows) == count
    assert set(rows[0]) == {"file", "patient", "label", "probability", "finding", "novelty", "correct", "view", "age"}
    right = sum(int(row["correct"]) for row in rows) / count
    assert right == pytest.approx(figures["stages"]["after"]["accuracy"]["value"], abs=1e-6)
    assert figures["stages"]["after"]["patients"] == len({row["patient"] for row in rows}) == -(-count // 2)
    assert [(group["by"], group["group"]) for group in figures["subgroups"]] == [
        ("view", "AP"), ("view", "PA"), ("age", "0 to below 30"), ("age", "30 or more"),
    ]  # fmt: skip
    assert sum(group["images"] for group in figures["subgroups"]) == 2 * count
    mine, theirs = figures["stages"]["after"]["auroc"]["value"], figures["against"]["figures"]["auroc"]["value"]
    assert figures["against"]["differences"]["auroc"]["value"] == pytest.approx(mine - theirs, abs=2e-6)
    assert figures["predictive_values"]["prevalence"] == 0.1
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("Against reference", "Subgroups", "Where 10 % have Pneumonia"):
        assert words in page
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        of = {row["of"] for row in csv.DictReader(file)}
    assert {"after", "against reference", "difference to reference", "view AP", "at a prevalence of 0.1"} <= of
    assert (tmp_path / "out" / "metrics.tex").read_text().count("\\\\") > 20


def test_the_command_takes_a_set_of_one_class(trained: Path, table: Path, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    (tmp_path / "sick.csv").write_text("\n".join([lines[0], *(line for line in lines if ",PNEUMONIA," in line)]))
    options = ["--checkpoint", trained, "--data", tmp_path / "sick.csv", "--split", "all", "--prevalence", 0.1,
               "--cache", tmp_path / "cache", "--out", tmp_path / "out"]  # fmt: skip
    done = CliRunner().invoke(main, [str(option) for option in options])
    assert done.exit_code == 0, done.output
    after = json.loads((tmp_path / "out" / "evaluation.json").read_text())["stages"]["after"]
    assert "sensitivity" in after
    assert "auroc" not in after
    assert not (tmp_path / "out" / "roc.png").exists()


def test_a_wrong_grouping_is_a_wrong_command_line(trained: Path, table: Path) -> None:
    done = CliRunner().invoke(main, ["--checkpoint", str(trained), "--data", str(table), "--by", "age:5,1"])
    assert (done.exit_code, "--by age:5,1" in done.output) == (2, True)
