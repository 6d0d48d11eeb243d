"""Sinusoid regression, the smallest few-shot problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.families import Shots, ShotSpec, Split, TaskParameter, Tasks, split_uniform
from metarl.settings import setting


@dataclasses.dataclass(frozen=True)
class Sinusoid:
    r"""Fit a sine wave from a few points.

    $$ y = A \sin(x - \varphi), \quad A \sim U(0.1, 5), \; \varphi \sim U(0, \pi), \; x \sim U(-5, 5) $$

    Support: ``shots`` points; query: ``queries`` fresh points. Loss and metric: mean squared error. An oracle sees
    $(x, A, \varphi)$ in place of x, and need not adapt.

    Reference: Finn, Abbeel and Levine (2017), arXiv:1703.03400, section 5.1.
    """

    shots: int = setting(10, "support points of a task", low=1)
    queries: int = setting(10, "query points of a task", low=1)
    oracle: bool = setting(
        False, "append amplitude and phase to the input (the reference; train it with inner_steps=0)"
    )

    recommended: ClassVar[Mapping[str, Any]] = {
        "algo": "maml-adam",
        "iterations": 20000,
        "meta_batch_size": 25,
        "inner_steps": 1,
        "inner_lr": 0.01,
        "hidden_sizes": (40, 40),
        "activation": "relu",
        "eval_every": 1000,
        "checkpoint_every": 500,
    }

    @property
    def spec(self) -> ShotSpec:
        """Sizes, ranges and units."""
        return ShotSpec(
            parameters=(TaskParameter("amplitude", 0.1, 5.0, ""), TaskParameter("phase", 0.0, float(np.pi), "rad")),
            input_shape=(3,) if self.oracle else (1,),
            target_size=1,
            loss="mse",
            metric="mse",
            unit="",
        )

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw amplitudes and phases."""
        unit = split_uniform(num_tasks, split, seed, dimensions=2)
        return Tasks(("amplitude", "phase"), np.array([0.1, 0.0]) + unit * np.array([4.9, np.pi]))

    def draw(self, tasks: Tasks, seeds: np.ndarray) -> tuple[Shots, Shots]:
        """Draw support and query points."""
        count = self.shots + self.queries
        inputs = np.stack([np.random.default_rng(int(seed)).uniform(-5.0, 5.0, (count, 1)) for seed in seeds])
        amplitude, phase = tasks["amplitude"][:, None, None], tasks["phase"][:, None, None]
        targets = (amplitude * np.sin(inputs - phase)).astype(np.float32)
        if self.oracle:
            told = np.broadcast_to(np.concatenate([amplitude, phase], axis=2), (len(tasks), count, 2))
            inputs = np.concatenate([inputs, told], axis=2)
        inputs = inputs.astype(np.float32)
        split = self.shots
        return Shots(inputs[:, :split], targets[:, :split]), Shots(inputs[:, split:], targets[:, split:])
