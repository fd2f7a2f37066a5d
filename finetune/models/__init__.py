"""Networks, their weights and prompts, and the calibrated decision on top of them."""
