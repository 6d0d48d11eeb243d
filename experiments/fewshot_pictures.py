"""What a few-shot task looks like: its support set, and its queries with what is predicted before and after adapting."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from metarl.analysis.shots import shot_domain
from metarl.core.params import Params, detach, expand
from metarl.families import Tasks
from metarl.fewshot import ShotBatch
from metarl.learner import MetaLearner

_CLASSES, _QUERIES = 10, 3  # shown of a task: most classes, and queries of each
_RIGHT, _WRONG = "#009e73", "#d55e00"  # told apart by colour-blind readers, too


class Answers(NamedTuple):
    """Support and query sets of M tasks, and the classes predicted for the queries before and after adapting, (M, Q)."""

    support: ShotBatch
    query: ShotBatch
    before: np.ndarray
    after: np.ndarray


def answers(learner: MetaLearner, meta: Params, tasks: Tasks, seed: Sequence[int], steps: int) -> Answers:
    """Adapt to tasks by so many updates, and answer their queries before and after.

    Raises:
        SettingsError: where there are no labelled shots.
    """
    domain = shot_domain(learner)
    support, query = domain.draw(tasks, domain.seeds(seed, len(tasks)))
    params = expand(detach(meta), len(tasks))

    def answered() -> np.ndarray:
        predicted = domain.judge(params, query).predicted
        assert predicted is not None, "classes are predicted"
        return predicted.argmax(-1).cpu().numpy()

    before = answered()
    for step in range(steps):
        params = learner.adapt(params, support, step)
    return Answers(support, query, before, answered())


def draw_episodes(found: Answers, title: str, path: pathlib.Path) -> None:
    """Draw every task: its classes in columns, a support image of each, and some of its queries under their answers."""
    from matplotlib.figure import Figure

    tasks = found.support.num_tasks
    ways = min(_CLASSES, 1 + int(found.query.targets.max()))
    figure = Figure(figsize=(1.1 * ways, 1.25 * (1 + _QUERIES) * tasks + 0.4), layout="constrained")
    figure.suptitle(f"{title}\nabove: support; below: queries, class answered before → after", fontsize=9)
    grid = figure.subplots((1 + _QUERIES) * tasks, ways, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for task in range(tasks):
        for way in range(ways):
            column = grid[(1 + _QUERIES) * task : (1 + _QUERIES) * (task + 1), way]
            shot = int(torch.nonzero(found.support.targets[task] == way)[0])
            _show(column[0], found.support.inputs[task, shot], f"class {way}", "black")
            asked = torch.nonzero(found.query.targets[task] == way)[:_QUERIES, 0].tolist()
            for axes in column[1 + len(asked) :]:
                axes.set_visible(False)
            for axes, query in zip(column[1:], asked, strict=False):
                before, after = found.before[task, query], found.after[task, query]
                _show(axes, found.query.inputs[task, query], f"{before} → {after}", _RIGHT if after == way else _WRONG)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _show(axes: object, image: torch.Tensor, title: str, colour: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    pixels = image.cpu().numpy().transpose(1, 2, 0)
    grey = pixels.shape[2] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="Greys" if grey else None, vmin=0, vmax=1)
    axes.set_title(title, fontsize=7, color=colour, pad=2)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=1.5)
