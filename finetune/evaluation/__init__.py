"""Metrics with confidence intervals, and checks of robustness, evidence and novelty."""
