"""Triton Python backend: runs this version's artefact on the CPU. Copied into every published version.

Needs nothing of the project but `counting` and `threads` beside it: a version keeps working whatever is installed.
Requests that Triton batched together are answered together. ONNX Runtime computes only the requested outputs and
the few numbers that are counted, OpenVINO always all of them.

Parameters of the configuration:

    preprocessing   must be this version's
    engine          onnxruntime (default), openvino or openvino-int8
    threads         of one instance; 0 (default) = its share of the cores. Where all instances together have more than
                    there are cores, those of ONNX Runtime do not spin while they wait
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from counting import TENSORS, Answers, holds_radiographs
from threads import may_spin, threads_of_instance

Images = npt.NDArray[np.uint8]
Tensor = npt.NDArray[Any]
Run = Callable[[Sequence[str], Images], list[Tensor]]

# Images per call of the engine. More are no quicker on a CPU, and an engine keeps the memory of its largest batch: with
# 32 images four times as much, on one thread (docs/performance.md).
AT_A_TIME = 4
ARTEFACTS = {"onnxruntime": "model.onnx", "openvino": "model.onnx", "openvino-int8": "model_int8.xml"}


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artefact; refuses a configuration whose preprocessing is not this version's."""
        config = json.loads(args["model_config"])
        version = args["model_version"]
        folder = Path(args["model_repository"]) / version
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        served = json.loads(parameters["preprocessing"])
        if served != manifest["preprocessing"]:
            raise pb_utils.TritonModelException(
                f"version {version} was built for preprocessing {manifest['preprocessing']}, the configuration says "
                f"{served}: publish again"
            )
        self.input_name = config["input"][0]["name"]
        engine = parameters.get("engine", "onnxruntime")
        instances = sum(group["count"] for group in config["instance_group"])
        threads = threads_of_instance(instances, int(parameters.get("threads", 0)))
        if engine not in ARTEFACTS:
            raise pb_utils.TritonModelException(f"engine {engine!r} is none of {', '.join(ARTEFACTS)}")
        artefact = folder / ARTEFACTS[engine]
        if not artefact.is_file():
            raise pb_utils.TritonModelException(
                f"version {version} has no {artefact.name}, which engine {engine!r} runs: build and publish it, or "
                "choose another engine"
            )
        try:
            if engine == "onnxruntime":
                self.run = _onnxruntime(artefact, self.input_name, threads, may_spin(instances, threads))
            else:
                self.run = _openvino(artefact, self.input_name, threads)
        except ImportError as err:
            raise pb_utils.TritonModelException(
                f"engine {engine!r} is not installed where Triton runs Python: {err}"
            ) from err
        # A name that begins with a dot is a publisher's candidate.
        self.answers = None if args["model_name"].startswith(".") else Answers(args["model_name"], lambda: version)
        if self.answers:
            self.answers.metrics(version)
        # Triton warms up before the first caller, with requests that look like any other.
        self.warm_up = sum(sample["batch_size"] * max(1, sample["count"]) for sample in config.get("model_warmup", []))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests, in order."""
        images = [pb_utils.get_input_tensor_by_name(request, self.input_name).as_numpy() for request in requests]
        asked = [request.requested_output_names() for request in requests]
        names = sorted(set(TENSORS).union(*asked))
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        outputs = dict(zip(names, self._compute(names, batch), strict=True))
        responses, start = [], 0
        for image, wanted in zip(images, asked, strict=True):
            rows = slice(start, start + len(image))
            start = rows.stop
            tensors = [pb_utils.Tensor(name, np.ascontiguousarray(outputs[name][rows])) for name in wanted]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        if self.warm_up > 0:
            self.warm_up -= len(batch)
        elif self.answers:
            counted = np.repeat([holds_radiographs(request) for request in requests], [len(image) for image in images])
            if counted.any():
                self.answers.count(*(outputs[name][counted] for name in TENSORS))
        return responses

    def _compute(self, names: Sequence[str], images: Images) -> list[Tensor]:
        """Compute these outputs of images (n, 1, s, s)."""
        parts = [self.run(names, images[i : i + AT_A_TIME]) for i in range(0, len(images), AT_A_TIME)]
        return parts[0] if len(parts) == 1 else [np.concatenate(part) for part in zip(*parts, strict=True)]

    def finalize(self) -> None:
        """Count the answers that are still waiting."""
        if self.answers:
            self.answers.end()


def _onnxruntime(artefact: Path, input_name: str, threads: int, spinning: bool) -> Run:
    """Make (names, images) -> outputs by ONNX Runtime. Spinning threads hold a core that other instances may need."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session = onnxruntime.InferenceSession(str(artefact), options, providers=["CPUExecutionProvider"])
    return lambda names, images: session.run(names, {input_name: images})


def _openvino(artefact: Path, input_name: str, threads: int) -> Run:
    """Make (names, images) -> outputs by OpenVINO, in 32-bit arithmetic unless the artefact is quantized."""
    import openvino

    # By default OpenVINO uses bfloat16 for a 32-bit graph, if the CPU has it.
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        # By default each process binds its threads to the first cores, and all instances share one.
        options |= {"INFERENCE_NUM_THREADS": str(threads), "ENABLE_CPU_PINNING": "NO"}
    request = openvino.Core().compile_model(str(artefact), "CPU", options).create_infer_request()

    def run(names: Sequence[str], images: Images) -> list[Tensor]:
        answers = request.infer({input_name: images})
        return [answers[name] for name in names]

    return run
