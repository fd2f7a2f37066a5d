"""Names of the files in a run folder."""

from __future__ import annotations

SETTINGS_FILE = "settings.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.json"
SPLITS_FILE = "splits.csv"
UNREADABLE_FILE = "unreadable.txt"
LEFT_OUT_FILE = "left_out.csv"
CURVES_FOLDER = "curves"
CURVES_FILE = "metrics.csv"  # in the folder of curves
CHECKPOINT_FOLDER = "checkpoint"
PARITY_FILE = "parity_images.npy"  # in the checkpoint folder: radiographs to compare engines on
RESUME_FOLDER = "resume"  # while the run is under way
LATEST = "latest"  # link beside the run folders
