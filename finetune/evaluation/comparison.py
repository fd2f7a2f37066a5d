"""Comparisons beyond one model on one set: with another model, among subgroups, and at another prevalence.

Everything is resampled by patient, and what is compared is resampled together: the difference of two figures is judged
on the same patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import SettingsError

from .metrics import Scores, calibration_error, patient_weights, rounded, weighted_auroc

Figure = Callable[[Scores, npt.NDArray[Any]], npt.NDArray[Any]]

# The chance of a warning about a subgroup that is no worse, over all subgroups and figures of an evaluation.
FALSE_ALARMS = 0.05
NOT_GIVEN = "not given"


def _share(hit: Callable[[Scores], npt.NDArray[Any]], among: Callable[[Scores], npt.NDArray[Any]]) -> Figure:
    def figure(scores: Scores, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        total = weights @ among(scores).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            share: npt.NDArray[Any] = (weights @ (hit(scores) & among(scores)).astype(float)) / total
        return share

    return figure


# Each maps weights (r, n) to r values; NaN where a resample holds no radiograph that the figure is of.
_FIGURES: dict[str, Figure] = {
    "accuracy": _share(lambda s: s.predicted == s.labels, lambda s: s.labels >= 0),
    "sensitivity": _share(lambda s: s.predicted == 1, lambda s: s.labels == 1),
    "specificity": _share(lambda s: s.predicted == 0, lambda s: s.labels == 0),
    "auroc": lambda s, w: weighted_auroc(s.labels, s.probability, w),
    "brier": lambda s, w: (w @ (s.probability - s.labels) ** 2) / w.sum(axis=1),
    "ece": lambda s, w: np.array([calibration_error(s.probability, s.labels, row) for row in w]),
}
# Of these, more is better.
_RANKED = ("accuracy", "sensitivity", "specificity", "auroc")


def differences(mine: Scores, theirs: Scores, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Compute how much one model's figures exceed another's on the same radiographs.

    Args:
        mine: Scores of the evaluated model, at its own operating point.
        theirs: Scores of the other, at its own; labels and patients are the same.
        seed: Seed of the bootstrap.

    Returns:
        Figure -> {value, low, high}, a paired 95 % interval by patient.
    """
    weights = patient_weights(mine.patients, seed)
    found = {}
    for name, figure in _FIGURES.items():
        everyone = np.ones((1, len(mine.labels)))
        value = float((figure(mine, everyone) - figure(theirs, everyone))[0])
        resampled = figure(mine, weights) - figure(theirs, weights)
        if np.isfinite(value):
            low, high = np.nanquantile(resampled, [0.025, 0.975])
            found[name] = rounded(value, low, high)
    return found


def predictive_values(scores: Scores, prevalence: float, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Compute PPV and NPV where this share of the patients has Pneumonia, by Bayes' theorem.

    Args:
        scores: Scores on a set with both classes; its own prevalence does not count.
        prevalence: Share of Pneumonia among those examined, above 0 and below 1.
        seed: Seed of the bootstrap.
    """

    def values(weights: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        sensitivity, specificity = (_FIGURES[name](scores, weights) for name in ("sensitivity", "specificity"))
        found, missed = prevalence * sensitivity, prevalence * (1 - sensitivity)
        cleared, alarmed = (1 - prevalence) * specificity, (1 - prevalence) * (1 - specificity)
        with np.errstate(invalid="ignore", divide="ignore"):
            return found / (found + alarmed), cleared / (cleared + missed)

    everyone, resampled = values(np.ones((1, len(scores.labels)))), values(patient_weights(scores.patients, seed))
    return {
        name: rounded(float(value[0]), *np.nanquantile(of_patients, [0.025, 0.975]))
        for name, value, of_patients in zip(("ppv", "npv"), everyone, resampled, strict=True)
        if np.isfinite(value[0])
    }


@dataclass(frozen=True)
class Grouping:
    """Division of radiographs by a column of the table that lists them.

    Attributes:
        column: Name of the column.
        edges: Ascending limits of a number; empty = each word is a group.
    """

    column: str
    edges: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Grouping:
        """Parse `view`, or `age:0,5,18,65` for 0 to below 5, 5 to below 18, 18 to below 65, and 65 or more.

        Raises:
            SettingsError: The limits are no ascending numbers.
        """
        column, colon, limits = text.partition(":")
        try:
            edges = tuple(float(limit) for limit in limits.split(",")) if colon else ()
        except ValueError:
            edges = (0.0, 0.0)
        if not column.strip() or list(edges) != sorted(set(edges)):
            raise SettingsError(f"--by {text}: not a column, or a column and ascending limits such as age:0,18,65")
        return cls(column.strip().lower(), edges)

    def group(self, cell: str | None) -> str:
        """Name the group of a cell; "not given" for none, and for what is no number or below the first limit."""
        if not cell:
            return NOT_GIVEN
        if not self.edges:
            return cell
        try:
            place = sum(float(cell) >= edge for edge in self.edges)
        except ValueError:
            return NOT_GIVEN
        if place == 0:
            return NOT_GIVEN
        low = f"{self.edges[place - 1]:g}"
        return f"{low} or more" if place == len(self.edges) else f"{low} to below {self.edges[place]:g}"


def subgroup_figures(
    scores: Scores, metadata: Sequence[Mapping[str, str]], groupings: Sequence[Grouping], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Compute the figures of each subgroup, and say where one is worse than the whole beyond chance.

    Args:
        scores: Scores of all radiographs.
        metadata: Cells of each radiograph, by column.
        groupings: Columns to divide by.
        seed: Seed of the bootstrap.

    Returns:
        For each group: `by`, `group`, `images`, `patients`, `positives`, `figures` (name -> {value, low, high}) and
        `worse`, the names of those that are below the whole's by the one-sided interval of the difference; its level is
        divided among all comparisons (Bonferroni), so that one warning in twenty evaluations is false.
    """
    weights, everyone = patient_weights(scores.patients, seed), np.ones((1, len(scores.labels)))
    groups = []
    for grouping in groupings:
        names = np.array([grouping.group(cells.get(grouping.column)) for cells in metadata])
        groups += [(grouping.column, name, names == name) for name in sorted(set(names.tolist()))]
    comparisons = max(1, len(groups) * len(_RANKED))
    whole = {name: (_FIGURES[name](scores, everyone)[0], _FIGURES[name](scores, weights)) for name in _RANKED}
    found = []
    for column, group, members in groups:
        figures, worse = {}, []
        for name in _RANKED:
            value = _FIGURES[name](scores, everyone * members)[0]
            if not np.isfinite(value):
                continue
            resampled = _FIGURES[name](scores, weights * members)
            figures[name] = rounded(float(value), *np.nanquantile(resampled, [0.025, 0.975]))
            difference = np.sort((resampled - whole[name][1])[np.isfinite(resampled - whole[name][1])])
            # The normal limit as well: so far in the tail a thousand resamples have few.
            if len(difference) and value < whole[name][0] and _is_below_zero(difference, FALSE_ALARMS / comparisons):
                worse.append(name)
        found.append({
            "by": column,
            "group": group,
            "images": int(members.sum()),
            "patients": len(np.unique(scores.patients[members])),
            "positives": int(scores.labels[members].sum()),
            "figures": figures,
            "worse": worse,
        })  # fmt: skip
    return found


def _is_below_zero(difference: npt.NDArray[Any], level: float) -> bool:
    from scipy.stats import norm

    limit = difference.mean() + norm.isf(level) * difference.std()
    return bool(limit < 0 and np.quantile(difference, 1 - level) < 0)
