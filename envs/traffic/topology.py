"""Who is next to whom: turns, and slices that shift a whole grid by one intersection.

Shapes: K = 3 movements, H = 4 headings, R rows, C columns, B grids. (h, r, c) is an approach, or what leaves
intersection (r, c) with heading h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.traffic.network import LEFT, RIGHT, STRAIGHT


def outgoing(flows: Tensor) -> Tensor:
    """Sort movements (K, H, ...) of incoming headings by the heading with which they leave.

    Who leaves northwards (0) by a left turn came eastwards (1); by a right turn, westwards (3).
    """
    return _turned(flows, -1)


def incoming(flows: Tensor) -> Tensor:
    """Inverse of :func:`outgoing`."""
    return _turned(flows, 1)


def _turned(flows: Tensor, direction: int) -> Tensor:
    left, straight, right = flows.unbind()
    return torch.stack([left.roll(direction, 0), straight, right.roll(-direction, 0)])


def look_ahead(approaches: Tensor, out: Tensor) -> Tensor:
    """Write into ``out`` (H, R, C, B) what the approach in front of each outgoing heading has; exits keep what they had."""
    out[0, 1:], out[2, :-1] = approaches[0, :-1], approaches[2, 1:]
    out[1, :, :-1], out[3, :, 1:] = approaches[1, :, 1:], approaches[3, :, :-1]
    return out


def drive_on(leaving: Tensor, out: Tensor) -> Tensor:
    """Write into ``out`` (H, R, C, B) what comes into each approach from an intersection; entries keep what they had."""
    out[0, :-1], out[2, 1:] = leaving[0, 1:], leaving[2, :-1]
    out[1, :, 1:], out[3, :, :-1] = leaving[1, :, :-1], leaving[3, :, 1:]
    return out


def entries(approaches: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return views of the approaches through which vehicles come, by heading: (C, B), (R, B), (C, B), (R, B)."""
    return approaches[0, -1], approaches[1, :, 0], approaches[2, 0], approaches[3, :, -1]


def exits(leaving: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return views of what leaves the grid, by heading: (C, B), (R, B), (C, B), (R, B)."""
    return leaving[0, 0], leaving[1, :, -1], leaving[2, -1], leaving[3, :, 0]


def by_phase(movements: Tensor) -> Tensor:
    """Add up what (K, H, R, C, B) holds for the movements of each phase, (4, R, C, B)."""
    left = movements[LEFT]
    through = movements[STRAIGHT] + movements[RIGHT]
    return torch.stack([through[0] + through[2], left[0] + left[2], through[1] + through[3], left[1] + left[3]])
