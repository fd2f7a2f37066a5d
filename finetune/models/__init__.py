"""Networks, their weights and prompts, calibration and decision, and checkpoints."""
