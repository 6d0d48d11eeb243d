"""Finite Markov decision processes whose tables are the task."""
