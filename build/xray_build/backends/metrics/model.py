"""Triton Python backend: counts the answers of the ensemble `xray_classifier` and passes them on unchanged.

An answer that cannot be counted is passed on too. The heatmap, which is not counted, does not pass through here.
"""

import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from counting import TENSORS, Answers, holds_radiographs

from xray_client import contract

# Seconds for which the loaded version counts as known. Triton may crash when it is told to stop soon after it was asked
# for it (measured, 2.51: 8 of 94 stops on a busy machine, asking for each answer).
_KNOWN_S = 1.0


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Register the metrics."""
        self.versions = Path(args["model_repository"]).parent / contract.MODEL_NAME
        self.live, self.asked = "", -_KNOWN_S
        self.answers = Answers(contract.ENSEMBLE_MODEL, self._live)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Count the answers of each request."""
        return [self._counted(request) for request in requests]

    def finalize(self) -> None:
        """Count the answers that are still waiting."""
        self.answers.end()

    def _counted(self, request: Any) -> Any:
        answer = {name: pb_utils.get_input_tensor_by_name(request, name) for name in TENSORS}
        if holds_radiographs(request):
            self.answers.count(*(tensor.as_numpy() for tensor in answer.values()))
        return pb_utils.InferenceResponse(output_tensors=[answer[name] for name in request.requested_output_names()])

    def _live(self) -> str:
        """The loaded version of `medclip`, which an ensemble does not tell its steps."""
        if self.live and time.monotonic() - self.asked < _KNOWN_S:
            return self.live
        self.asked = time.monotonic()
        if not (self.live and pb_utils.is_model_ready(contract.MODEL_NAME, self.live)):
            names = sorted(
                (path.name for path in self.versions.iterdir() if path.name.isdigit()), key=int, reverse=True
            )
            ready = (name for name in names if pb_utils.is_model_ready(contract.MODEL_NAME, name))
            self.live = next(ready, "")
        return self.live
