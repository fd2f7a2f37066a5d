"""File names of a build folder and of a version in the model repository, in one place."""

from __future__ import annotations

# Engines, as built and as published.
ONNX_FILE = "model.onnx"
FP16_FILE = "model_fp16.onnx"
PLAN_FILE = "model.plan"
RTX_FILE = "model_rtx.engine"
INT8_FILE = "model_int8.xml"
INT8_WEIGHTS_FILE = "model_int8.bin"

# Their descriptions.
BUILD_RECORD_FILE = "build.json"
MANIFEST_FILE = "manifest.json"
KNOWN_ANSWERS_FILE = "known.npz"

# Code that the Python backend runs, copied into every version.
MODEL_CODE_FILE = "model.py"
COUNTING_CODE_FILE = "counting.py"
THREADS_CODE_FILE = "threads.py"

# Beside the versions.
LABELS_FILE = "labels.txt"
VERSION_LOG_FILE = "versions.json"
