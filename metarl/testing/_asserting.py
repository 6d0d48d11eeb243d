"""How a check says what is broken."""

from __future__ import annotations

from torch import Tensor


def require(holds: object, rule: str, detail: str = "") -> None:
    if not holds:
        raise AssertionError(f"{rule}; {detail}" if detail else rule)


def close(actual: Tensor, expected: Tensor, relative: float, rule: str) -> None:
    gap = float((actual - expected).norm() / (expected.norm() + 1e-12))
    require(gap <= relative, rule, f"relative difference {gap:.2g}")
