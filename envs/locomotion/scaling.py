"""Tasks that are bodies: factors on masses, inertias, damping and friction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metarl.envs.locomotion.bodies import Scaled
from metarl.families import Split, TaskParameter, Tasks, split_uniform


def scaled_parts(bodies: Sequence[str], joints: Sequence[str], geoms: Sequence[str]) -> tuple[Scaled, ...]:
    """List what a task multiplies: mass and inertia of bodies, damping of joints, friction of surfaces."""
    return (
        *(Scaled(f"mass_{name}", "body_mass", name) for name in bodies),
        *(Scaled(f"inertia_{name}", "body_inertia", name) for name in bodies),
        *(Scaled(f"damping_{name.removesuffix('_joint')}", "dof_damping", name) for name in joints),
        *(Scaled(f"friction_{name.removesuffix('_geom')}", "geom_friction", name) for name in geoms),
    )


@dataclass(frozen=True)
class Ranges:
    """Factors base^u with u uniform on [-spread, spread]: as often below 1 as above.

    Attributes:
        spread: largest exponent.
    """

    spread: float

    def parameters(self, parts: Sequence[Scaled]) -> tuple[TaskParameter, ...]:
        """Return the range of every factor."""
        return tuple(
            TaskParameter(part.parameter, base**-self.spread, base**self.spread, "times")
            for part, base in zip(parts, _bases(parts).tolist(), strict=True)
        )

    def draw(self, parts: Sequence[Scaled], num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw the factors of every task; the first one decides the split."""
        exponents = self.spread * (2.0 * split_uniform(num_tasks, split, seed, len(parts)) - 1.0)
        return Tasks(tuple(part.parameter for part in parts), _bases(parts) ** exponents)


def _bases(parts: Sequence[Scaled]) -> np.ndarray:
    return np.array([1.3 if part.field == "dof_damping" else 1.5 for part in parts])
