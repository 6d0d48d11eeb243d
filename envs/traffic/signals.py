"""The traffic lights: which phase shows, when it may change, and when vehicles may go."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.traffic.counts import SECOND_QUANTUM
from metarl.envs.traffic.network import PHASES, Grid


class Signals:
    r"""The lights of B grids: every intersection has one of four phases, and a clock since it was chosen.

    A request for another phase shows yellow, then red everywhere (``clearance`` seconds together), then the new green. In
    its first ``lost`` seconds nothing moves yet. So with a = seconds since the request, vehicles go during the part

    $$ \varphi = \operatorname{clip}(a + 1 - \text{clearance} - \text{lost},\ 0,\ 1) $$

    of the next second. Nothing crosses in yellow; what crosses there in reality makes up for start-up losses, so that the
    effective green is about the green shown (then ``lost`` is about 0).
    A phase may be left after ``min_green`` seconds of green. In the beginning phase 0 may be left at once.

    Shapes: R rows, C columns, B grids.

    Args:
        grid: tells yellow, all-red and minimum green.
        lost: start-up lost time, s, float64 (B,).
    """

    def __init__(self, grid: Grid, lost: Tensor) -> None:
        self._grid = grid
        shape = (grid.rows, grid.columns, len(lost))
        self.phase = torch.zeros(shape, dtype=torch.int64, device=lost.device)  # that shows or is about to
        self.previous = torch.zeros_like(self.phase)
        self.age = torch.full(shape, float(grid.clearance + grid.min_green), dtype=torch.float64, device=lost.device)
        # parts of a second that are multiples of the quantum of time
        self._start = grid.clearance + (lost / SECOND_QUANTUM).round() * SECOND_QUANTUM
        self._sides = torch.tensor([[1, 3], [0, 2]], device=lost.device).reshape(2, 2, 1, 1, 1)
        self._phases = torch.arange(len(PHASES), device=lost.device).reshape(-1, 1, 1, 1)

    @property
    def free(self) -> Tensor:
        """Whether the phase may be left, bool (R, C, B)."""
        return self.age >= self._grid.clearance + self._grid.min_green

    def legal(self) -> Tensor:
        """Return which phases may be requested, bool (4, R, C, B): all of them, or only the one that was."""
        return self.free | (self._phases == self.phase)

    def request(self, phases: Tensor) -> None:
        """Choose every intersection's phase, int64 (R, C, B); the one that it has goes on.

        Raises:
            ValueError: for a phase that does not exist or may not be requested; then nothing has changed.
        """
        if phases.shape != self.phase.shape or phases.dtype != torch.int64:
            wanted = f"int64 {tuple(self.phase.shape)}"
            raise ValueError(f"requested phases must be {wanted}, got {phases.dtype} {tuple(phases.shape)}")
        change = phases != self.phase
        wrong = (phases < 0) | (phases >= len(PHASES)) | (change & ~self.free)
        if bool(wrong.any()):
            row, column, grid = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"phase {int(phases[row, column, grid])} is illegal at row {row}, column {column} of grid {grid}"
            )
        self.previous = torch.where(change, self.phase, self.previous)
        self.phase = torch.where(change, phases, self.phase)
        self.age = torch.where(change, 0.0, self.age)

    def open(self) -> Tensor:
        """Return the part of the next second in which traffic goes, (2, 2, R, C, B): left or not, then axis."""
        part = (self.age + 1.0 - self._start).clamp_(0.0, 1.0)
        return (self._sides == self.phase) * part

    def shown(self) -> Tensor:
        """Return the colours, int64 (2, 2, R, C, B), left or not, then axis: 0 red, 1 yellow, 2 green."""
        green = (self._sides == self.phase) & (self.age >= self._grid.clearance)
        yellow = (self._sides == self.previous) & (self.age < self._grid.yellow)
        return 2 * green.long() + yellow.long()

    def tick(self) -> None:
        """Let a second pass."""
        self.age = self.age + 1.0
