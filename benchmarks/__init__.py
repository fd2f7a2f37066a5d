"""Benchmarks of this project; each is run as a module from the checkout."""
