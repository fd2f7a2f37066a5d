"""The rules and the dashboard of docs/deploy on a real Prometheus that scrapes a real Triton."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.helpers.deployed import Deployed, production_flags
from tests.helpers.prometheus import DEPLOY, Prometheus, program, render, rules
from tests.helpers.radiographs import grey
from tests.helpers.small_graph import publish_small
from tests.serving.test_answers_counted import ask as classify
from tests.serving.test_ensemble import refusal
from xray_client import XrayClient, contract

PANELS = json.loads((DEPLOY / "grafana" / "dashboards" / "triton.json").read_text())["panels"]
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
INTERVAL = "20s"
NOVEL = 80
# Without a GPU, without a week behind it.
NOT_HERE = ("nv_gpu_", ":week")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """After calls of both models and a file that is none; most radiographs are unlike the training radiographs."""
    repository = tmp_path_factory.mktemp("prometheus") / "model_repository"
    publish_small(repository, temperature=0.25)
    with (
        Deployed(repository, production_flags(), tmp_path_factory.mktemp("none")) as server,
        Prometheus(tmp_path_factory.mktemp("samples"), server.metrics_url.split("/")[2]) as running,
        XrayClient(server.url) as client,
    ):
        for _ in range(2):  # a series counts from its first sample on
            for level in (255, 0, 120, *[255] * NOVEL):
                client.classify(grey(level))
            classify(server, [0, 120, 255])
            refusal(server.url, b"no radiograph")
            running.until(lambda: running.query(f'xray_novel_total{{model="{contract.ENSEMBLE_MODEL}"}}'))
        yield running


@pytest.mark.slow
def test_samples_of_triton_and_of_the_models_own_answers_arrive(prometheus: Prometheus) -> None:
    direct, ensemble = contract.MODEL_NAME, contract.ENSEMBLE_MODEL
    assert prometheus.until(lambda: prometheus.query(f'nv_inference_request_success{{model="{direct}"}} > {NOVEL}'))
    (counted,) = prometheus.until(lambda: prometheus.query(f'sum(xray_answers_total{{model="{ensemble}"}}) == 6'))
    (novel,) = prometheus.query(f'xray_novel_total{{model="{ensemble}"}}')
    assert (counted["value"][1], novel["value"][1], novel["metric"]["version"]) == ("6", "4", "1")


@pytest.mark.slow
@pytest.mark.parametrize(("title", "text"), TARGETS)
def test_every_panel_of_the_dashboard_has_data(prometheus: Prometheus, title: str, text: str) -> None:
    query = render.expression(text, INTERVAL)
    if any(word in query for word in NOT_HERE):
        assert prometheus.query(query) == []
    else:
        assert prometheus.until(lambda: prometheus.query(query), seconds=30), title


@pytest.mark.slow
def test_every_rule_is_evaluated_without_an_error_and_novel_radiographs_raise_theirs(prometheus: Prometheus) -> None:
    def known() -> list[dict[str, Any]]:
        groups = render.ask(prometheus.url, "rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    prometheus.until(lambda: all(rule["health"] != "unknown" for rule in known()))
    assert {rule["name"]: rule.get("lastError", "") for rule in known() if rule["health"] != "ok"} == {}
    assert {rule["name"] for rule in known()} == {rule.get("alert") or rule["record"] for rule in rules()}
    prometheus.until(lambda: any(rule["name"] == "MoreNovel" and rule["state"] == "pending" for rule in known()))
    assert {rule["name"] for rule in known() if rule.get("state") == "pending"} == {"MoreNovel"}


@pytest.mark.slow
def test_the_dashboard_can_be_drawn_without_grafana(prometheus: Prometheus, tmp_path: Path) -> None:
    render.main([prometheus.url, str(tmp_path / "a.png"), "--minutes", "1", "--rate-interval", INTERVAL])
    assert (tmp_path / "a.png").stat().st_size > 50_000


# Drift, over days that nobody waits for: a step is ten minutes and has 10 answers.

DAY = 144
LABELS = {"model": "medclip", "severity": "warn"}
USUAL = {"Uncertain": 0.2, "novel": 0.1}


def series(**changed: list[tuple[float, float]]) -> list[dict[str, str]]:
    """Counters of 8 days; `changed`: what a step adds and for how many days, one after the other."""
    added = {name: changed.get(name, [(step, 8)]) for name, step in USUAL.items()}
    added["Normal"] = changed.get("Normal", [(9.8, 8)])

    def counter(steps: list[tuple[float, float]]) -> str:
        values = np.cumsum(np.concatenate([np.full(round(days * DAY), step) for step, days in steps]))
        return " ".join(f"{value:.1f}" for value in values)

    labels = 'model="medclip",version="1"'
    answers = [f'xray_answers_total{{{labels},finding="{name}"}}' for name in ("Normal", "Uncertain")]
    names = [*zip(answers, ("Normal", "Uncertain"), strict=True), (f"xray_novel_total{{{labels}}}", "novel")]
    return [{"series": name, "values": counter(added[kind])} for name, kind in names]


@pytest.mark.parametrize(
    ("counters", "alerts"),
    [
        pytest.param({}, set(), id="a week like the other"),
        pytest.param({"Uncertain": [(0.2, 7.9), (0.8, 0.1)]}, {"MoreUncertain"}, id="from 2 to 7 %"),
        pytest.param({"Uncertain": [(0.2, 7.9), (0.5, 0.1)]}, set(), id="more than doubled, and still few"),
        pytest.param({"Uncertain": [(0.8, 7.9), (1.2, 0.1)]}, set(), id="from 7 to 11 %"),
        pytest.param({"Uncertain": [(4, 8)]}, {"MoreUncertain"}, id="ever since a week"),
        pytest.param({"novel": [(0.1, 7.9), (1, 0.1)]}, {"MoreNovel"}, id="from 1 to 10 % novel"),
        pytest.param({"Normal": [(0.5, 8)], "Uncertain": [(0.5, 8)], "novel": [(1, 8)]}, set(), id="6 answers an hour"),
    ],
)
def test_drift_is_told_when_a_share_has_doubled_or_is_large(
    counters: dict[str, list[tuple[float, float]]], alerts: set[str], tmp_path: Path
) -> None:
    told = [
        {"eval_time": "191h", "alertname": name, "exp_alerts": [{"exp_labels": LABELS}] if name in alerts else []}
        for name in ("MoreUncertain", "MoreNovel")
    ]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "drift.yml").read_text())
    for group in rules["groups"]:
        group["interval"] = "10m"
        for rule in group["rules"]:
            rule.pop("annotations", None)  # hold a number of many digits
    (tmp_path / "drift.yml").write_text(yaml.safe_dump(rules))
    tests = [{"interval": "10m", "input_series": series(**counters), "alert_rule_test": told}]
    order = [group["name"] for group in rules["groups"]]  # else any: what is recorded might come too late
    whole = {"rule_files": ["drift.yml"], "evaluation_interval": "10m", "group_eval_order": order, "tests": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(whole))
    command = [program("promtool"), "test", "rules", str(tmp_path / "test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
