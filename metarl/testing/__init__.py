"""Conformance kit: the rules that families, inner rules and outer rules keep, as checks for one's own.

A broken rule raises an ``AssertionError`` that says whose, and which.

Example:
    >>> from metarl.core import TRPO, GradientStep
    >>> check_family("sinusoid")
    >>> check_inner_rule(lambda loss: GradientStep(loss, lr=0.1))
    >>> check_outer_rule(TRPO(max_kl=0.02), max_kl=0.02)
"""

from metarl.testing.families import check_family
from metarl.testing.rules import check_inner_rule, check_outer_rule

__all__ = ["check_family", "check_inner_rule", "check_outer_rule"]
