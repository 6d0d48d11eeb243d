"""Runs: configuration, training loop, checkpoints, metrics."""
