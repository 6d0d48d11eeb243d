"""What the pictures of tasks say is what the network answers."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments import fewshot_pictures
from metarl.core import Adam, GradientStep
from metarl.fewshot import ShotDomain
from metarl.learner import MetaLearner
from metarl.nets import Conv4

SEED = (0, 2, 1)


def test_titles_and_images_are_those_of_the_task(patterns, monkeypatch, tmp_path):
    """Every title is recomputed from the answers, every image looked up in the task.

    Catches answers after in place of before, another task's, colours the wrong way round, and images of another class.
    """
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    domain = ShotDomain(patterns(), Conv4((1, 8, 8), 3, 4), chunk_tasks=1)
    learner = MetaLearner(domain, GradientStep(domain.inner_loss, 0.4), Adam(1e-3), meta_batch_size=2)
    meta, tasks = learner.init(0).meta, domain.sample_tasks(2, "test", (0, 2))
    found = fewshot_pictures.answers(learner, meta, tasks, SEED, 3)
    support, query = domain.draw(tasks, domain.seeds(SEED, 2))
    trail = learner.explore(meta, tasks, SEED, 3)
    with torch.no_grad():
        unadapted = {name: value.expand(2, *value.shape) for name, value in meta.items()}
        wanted = [domain.net(params, query.inputs) for params in (unadapted, trail.params)]
    for answers, logits in zip((found.before, found.after), wanted, strict=True):
        np.testing.assert_array_equal(answers, logits.argmax(-1).numpy())
    assert (found.before != found.after).any()

    fewshot_pictures.draw_episodes(found, "title", tmp_path / "x.png")
    grid = np.array(drawn[0].axes).reshape(2, 4, 3)  # tasks, a support row and three of queries, ways
    for task, row, way in np.ndindex(2, 4, 3):
        axes = grid[task, row, way]
        image = np.asarray(axes.images[0].get_array())
        examples = support if row == 0 else query
        (at,) = np.flatnonzero((examples.inputs[task, :, 0].numpy() == image).all((1, 2)))
        assert examples.targets[task, at] == way
        if row:
            assert axes.get_title() == f"{found.before[task, at]} → {found.after[task, at]}"
            right = axes.title.get_color() == fewshot_pictures._RIGHT
            assert right == (found.after[task, at] == way)
        else:
            assert axes.get_title() == f"class {way}"
