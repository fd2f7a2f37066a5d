"""The short model card in the served configuration, from what a checkpoint or a manifest knows of a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xray_client import LABELS, RESEARCH_USE, Estimate, ModelCard

# The order in which people read them; what an evaluation has besides stays in the manifest.
FIGURES = ("auroc", "sensitivity", "specificity", "accuracy", "ppv", "npv", "ece", "certain")
# Split in the metrics -> its name in prose; "validation" is the key of earlier releases.
SPLITS = {"test": "test", "val": "validation", "validation": "validation"}
NOT_FOR = (
    "Diagnosis, triage or any decision about a patient; radiographs of another age group, projection or hospital than "
    "the training data, until it was evaluated there."
)
_DIGITS = 4


def card_of(about: Mapping[str, Any]) -> ModelCard | None:
    """The card of a version; None where nothing is known that belongs on one.

    Args:
        about: What a checkpoint says of itself, with `checkpoint`, the hashes of its files; or a version's manifest.
    """
    try:
        return _card(about)
    except (TypeError, ValueError, LookupError):  # of another release, or damaged: it is not needed to serve
        return None


def _card(about: Mapping[str, Any]) -> ModelCard | None:
    # Manifests of earlier releases have the decision under "trust".
    rule, evaluation = _part(about, "decision") or _part(about, "trust"), _part(about, "evaluation")
    after, evaluated_on = _judged(about)
    if not rule and not after:
        return None
    band = rule.get("uncertain_band")
    flagged = _part(evaluation, "novelty", "chest radiographs").get("flagged")
    return ModelCard(
        operating_point=_rounded(rule.get("operating_point")),
        sensitivity_asked=_rounded(rule.get("sensitivity_asked")),
        uncertain_band=(round(band[0], _DIGITS), round(band[1], _DIGITS)) if band else None,
        temperature=_rounded(rule.get("temperature")),
        bias=_rounded(rule.get("bias")),
        fitted_on=str(rule.get("fitted_on", "")),
        novelty_flagged=_rounded(flagged),
        trained_on=_trained_on(_part(about, "trained_on")),
        evaluated_on=evaluated_on,
        intervals=str(evaluation.get("intervals") or _part(about, "metrics").get("intervals", "")),
        figures={
            name: Estimate(*(round(float(after[name][key]), _DIGITS) for key in ("value", "low", "high")))
            for name in FIGURES
            if isinstance(after.get(name), Mapping)
        },
        checkpoint=str(_part(about, "checkpoint").get("model.safetensors", "")),
        not_for=NOT_FOR,
        notice=RESEARCH_USE,
    )


def _judged(about: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Figures after training, and what they are of: the evaluation's, else test's, else validation's."""
    evaluation = _part(about, "evaluation")
    folder = _part(about, "trained_on").get("folder", "")
    data = _part(evaluation, "data")
    found = [
        (
            _part(evaluation, "stages", "after"),
            f"{data.get('source', folder)}, {data.get('split', data.get('part', ''))}",
        )
    ]
    found += [(_part(about, "metrics", split, "after"), f"{folder}, {shown}") for split, shown in SPLITS.items()]
    for figures, of in found:
        if figures:
            return figures, f"{of}: {figures.get('images')} radiographs of {figures.get('patients')} patients"
    return {}, ""


def _trained_on(trained: Mapping[str, Any]) -> str:
    counts = _part(trained, "train")
    return f"{trained['folder']}: " + ", ".join(f"{counts.get(label, 0)} {label}" for label in LABELS) if counts else ""


def _part(values: Any, *names: str) -> Mapping[str, Any]:
    """What lies under these names; empty where there is none."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), _DIGITS)
