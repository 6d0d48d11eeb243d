"""Gymnasium on both sides: families as environments, and environments as families."""
