"""Benchmarks and recorded results; run from a clone, e.g. ``python -m experiments.benchmark iteration``."""
