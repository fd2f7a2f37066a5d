"""Plots and HTML reports of audits, runs and evaluations."""
