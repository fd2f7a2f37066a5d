"""The short model card in the served configuration, made from a checkpoint's description or a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xray_client import LABELS, RESEARCH_USE, Estimate, ModelCard

# In the order in which people read them; further figures of an evaluation stay in the manifest.
FIGURES = ("auroc", "sensitivity", "specificity", "accuracy", "ppv", "npv", "ece", "certain")
# Split in the metrics -> its name in prose; "validation" is the key of earlier releases.
SPLITS = {"test": "test", "val": "validation", "validation": "validation"}
NOT_FOR = (
    "Diagnosis, triage or any decision about a patient; radiographs of another age group, projection or hospital than "
    "the training data, until it was evaluated there."
)
_DIGITS = 4


def card_of(about: Mapping[str, Any]) -> ModelCard | None:
    """Make the card of a version; None if nothing is known that belongs on a card.

    Args:
        about: Description of a checkpoint, with `checkpoint`, the hashes of its files; or a version's manifest.
    """
    try:
        return _card(about)
    except (TypeError, ValueError, LookupError):  # of another release, or damaged: serving does not need it
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
    """Figures after training and the radiographs they rest on: of the evaluation, else of test, else of validation."""
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
    for figures, source in found:
        if figures:
            return figures, f"{source}: {figures.get('images')} radiographs of {figures.get('patients')} patients"
    return {}, ""


def _trained_on(trained: Mapping[str, Any]) -> str:
    counts = _part(trained, "train")
    return f"{trained['folder']}: " + ", ".join(f"{counts.get(label, 0)} {label}" for label in LABELS) if counts else ""


def _part(values: Any, *names: str) -> Mapping[str, Any]:
    """The mapping under these nested names; empty if there is none."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), _DIGITS)
