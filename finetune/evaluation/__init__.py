"""Metrics with intervals, and checks of robustness, evidence and novelty."""
