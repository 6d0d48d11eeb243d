"""Supervised few-shot families."""
