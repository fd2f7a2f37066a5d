"""Triton Python backend: runs this version's `model.onnx` with ONNX Runtime. Copied into every published version.

Stands alone: it imports nothing of ours, so that a version keeps working whatever is installed beside it.
Requests that Triton batched together are answered by one run, computing only the outputs that somebody asked for.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Load the graph; refuses a configuration whose preprocessing is not this version's."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = json.loads((folder / "manifest.json").read_text())
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        served = json.loads(parameters["preprocessing"])
        if served != manifest["preprocessing"]:
            raise pb_utils.TritonModelException(
                f"version {args['model_version']} was built for preprocessing {manifest['preprocessing']}, the "
                f"configuration says {served}: publish again"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("threads", 0))  # 0 = one per core
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.input_name = config["input"][0]["name"]

    def execute(self, requests):
        """Answer a batch of requests, in order."""
        images = [pb_utils.get_input_tensor_by_name(request, self.input_name).as_numpy() for request in requests]
        asked = [request.requested_output_names() for request in requests]
        names = sorted(set().union(*asked))
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        outputs = dict(zip(names, self.session.run(names, {self.input_name: batch}), strict=True))
        responses, start = [], 0
        for image, wanted in zip(images, asked, strict=True):
            rows = slice(start, start + len(image))
            start = rows.stop
            tensors = [pb_utils.Tensor(name, np.ascontiguousarray(outputs[name][rows])) for name in wanted]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
