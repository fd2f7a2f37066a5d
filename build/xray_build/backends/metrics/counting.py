"""Counts of the model's answers in Triton's own metrics. Copied beside each `model.py` that counts.

    xray_answers_total{model, version, finding}           counter
    xray_novel_total{model, version}                      counter: novelty above 1
    xray_pneumonia_probability{model, version}            histogram, with _bucket, _sum and _count

Only counts: nothing of a patient, a request or a caller. Imports no other code of the project, as the code of a version
must keep working whatever is installed.
"""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

Tensor = npt.NDArray[Any]
TENSORS = ("probability", "decision", "novelty")
FINDINGS = ("Normal", "Pneumonia", "Uncertain")
PNEUMONIA = FINDINGS.index("Pneumonia")
# Close together at both ends, where a calibrated model's answers lie.
BUCKETS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0]
_END = None
# Requests with ids that begin so ask if the server answers; they hold no radiograph.
HEALTH_PREFIX = "health-"
# Seconds that an unloading waits for answers that are still to be counted.
_END_S = 5.0


def holds_radiographs(request: Any) -> bool:
    """Tell if the answer to a request is to be counted."""
    return not request.request_id().startswith(HEALTH_PREFIX)


class Answers:
    """Counters of one model, by version; Triton keeps them when a version is unloaded or loaded again.

    Each number costs a message to Triton and back, so a thread sends them: no request waits for it, and no error in it
    fails an answer.

    Args:
        model: Name of the model that callers ask for.
        live: Function that returns the version that answers.
    """

    def __init__(self, model: str, live: Callable[[], str]) -> None:
        family = pb_utils.MetricFamily
        self._model = model
        self._live = live
        self._answers = family(
            name="xray_answers_total", description="Radiographs answered, by finding", kind=family.COUNTER
        )
        self._novel = family(
            name="xray_novel_total",
            description="Radiographs answered that are unlike the training radiographs",
            kind=family.COUNTER,
        )
        self._probability = family(
            name="xray_pneumonia_probability",
            description="Calibrated probability of Pneumonia of the radiographs answered",
            kind=family.HISTOGRAM,
        )
        self._versions: dict[str, tuple[list[Any], Any, Any]] = {}
        self._waiting: SimpleQueue[tuple[Tensor, ...] | None] = SimpleQueue()
        self._thread = Thread(target=self._count_all, daemon=True)
        self._thread.start()

    def count(self, probability: Tensor, decision: Tensor, novelty: Tensor) -> None:
        """Count n answers, soon: probability (n, 2), decision (n, 1), novelty (n, 1)."""
        # Triton takes its memory back when the answer has gone out.
        self._waiting.put(tuple(np.array(tensor) for tensor in (probability, decision, novelty)))

    def end(self) -> None:
        """Count the answers that are still waiting."""
        self._waiting.put(_END)
        self._thread.join(_END_S)

    def metrics(self, version: str) -> tuple[list[Any], Any, Any]:
        """Register the metrics of a version at zero, so that the first answer is an increase already."""
        if version not in self._versions:
            labels = {"model": self._model, "version": version}
            findings = [self._answers.Metric(labels={**labels, "finding": finding}) for finding in FINDINGS]
            histogram = self._probability.Metric(labels=labels, buckets=BUCKETS)
            self._versions[version] = findings, self._novel.Metric(labels=labels), histogram
        return self._versions[version]

    def _count_all(self) -> None:
        while (answers := self._waiting.get()) is not _END:
            try:
                self._increase(*answers)
            except Exception as err:
                pb_utils.Logger.log_error(f"answers were not counted: {type(err).__name__}: {err}")

    def _increase(self, probability: Tensor, decision: Tensor, novelty: Tensor) -> None:
        findings, novel, histogram = self.metrics(self._live())
        for metric, which in [*((findings[index], decision == index) for index in range(3)), (novel, novelty > 1)]:
            if which.any():
                metric.increment(int(which.sum()))
        for value in probability[:, PNEUMONIA].tolist():
            histogram.observe(value)
