"""Film strips of the page about runs: which moments, by which parameters, and what stands there instead of a picture."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

import metarl
from metarl.analysis import film, parts, sections
from metarl.families import Tasks

GOAL, POINT, START = (120, 200, 120), (0, 114, 178), (150, 150, 150)


def test_a_point_is_drawn_where_it_is():
    """Axes exchanged, y downwards, a goal of another simulation. 200 pixels are 2.5 x 0.5 m: 160 to a metre."""
    env = metarl.make("navigation-2d").batch(2, 1)
    env.reset(Tasks(("goal_x", "goal_y"), np.array([[0.0, 0.0], [0.5, -0.25]])), np.zeros(2, np.uint32))
    env.step(np.array([[0.0, 0.0], [0.5, 1.0]], np.float32))
    image = env.render(1, 300, 200)
    assert image.shape == (200, 300, 3)
    for (x, y), colour in (((0.5, -0.25), GOAL), ((0.05, 0.1), POINT), ((0.0, 0.0), START)):
        assert tuple(image[round(100 - 160 * y), round(150 + 160 * x)]) == colour
    far = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    for _ in range(30):
        env.step(far)
    assert tuple(env.render(1, 300, 200)[5, 294]) == POINT  # 2.9 m away, at the edge


def _learner():
    """A policy that goes right: its mean is its last bias, (1, 0) whatever it sees."""
    learner = metarl.build(
        "navigation-2d", env_settings={"horizon": 9}, hidden_sizes=(4,), threads=1, episodes_per_task=2
    )
    meta = learner.init(0).meta
    *_, weight, bias = (name for name in meta if "std" not in name)
    return learner, {**meta, weight: torch.zeros_like(meta[weight]), bias: torch.tensor([1.0, 0.0])}


def test_moments_are_spread_over_the_episode():
    """The first moments, both rows of the same parameters, a step after the last: nine steps are 0.1 to 0.9 m to the right."""
    learner, meta = _learner()
    task = Tasks(("goal_x", "goal_y"), np.array([[-0.4, 0.3]]))
    strip = film.draw(learner, meta, task, (0, 2, 1), 1, (0.5,))
    image = np.asarray(Image.open(io.BytesIO(strip.png)))
    assert image.shape == (320, 1200, 3)
    for number, step in enumerate((1, 3, 5, 7, 9)):
        across = 240 * number + min(120 + 128 * 0.1 * step, 235)
        assert tuple(image[80, round(across)]) == POINT
    assert (image[:160] != image[160:]).any()
    assert (
        tuple(image[160 + 80, 240 * 4 + 235]) != POINT
    )  # one update turns it towards the goal or away, not along the axis
    # nine steps of 0.1 m along x = 0.1 t, the goal at (-0.4, 0.3)
    wanted = -sum(np.hypot(0.1 * t + 0.4, 0.3) for t in range(1, 10))
    assert f"goal_x -0.40, goal_y 0.30: return {wanted:.4g} before adapting, " in strip.text
    assert " after 1 update;" in strip.text
    assert film.draw(learner, meta, task, (0, 2, 1), 0).png != strip.png


def test_what_cannot_be_drawn_is_one_sentence(runs, tmp_path):
    """A page that fails, or is silent, where there is nothing to see; a strip that is there and drawn again."""
    strip = film.of_run(runs["sinusoid"], None, "sinusoid")
    assert strip == (b"", "No film strip: labelled shots are not drawn.")
    (picture,) = sections.film(strip)
    assert (picture.data, picture.reading) == ("", strip.text)
    assert isinstance(picture, parts.Picture)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "film_task2.png").write_bytes(b"as it is")
    assert film.of_run(tmp_path, None, "x") == (b"as it is", "From evaluation/film_task2.png.")


@pytest.mark.parametrize(("updates", "rates", "told"), [([0, 1, 2], [0.05], (2, (0.05,))), ([0], [0.1], (0, ()))])
def test_it_adapts_as_the_evaluation_did(runs, monkeypatch, updates, rates, told):
    """Training's step sizes where the evaluation chose others: the film of an adaptation that nobody has scored."""
    seen = []
    monkeypatch.setattr(film, "prepare_gl", lambda: None)
    monkeypatch.setattr(film, "draw", lambda *words: seen.append(words) or film.Strip(b"", ""))
    curve = {"runs": {"maml": {"updates": updates}}, "notes": {"maml": {"inner_lr": rates}}}
    film.of_run(runs["maml"], curve, "maml")
    ((learner, meta, task, seed, steps, given),) = seen
    assert (steps, given, seed) == (*told, (0, 2, 1))
    assert task == learner.domain.sample_tasks(1, "test", (0, 2))
    assert all(torch.equal(meta[name], value) for name, value in metarl.load(runs["maml"]).meta.items())
    assert dataclasses.is_dataclass(learner)


@pytest.mark.parametrize(("redrawn", "first"), [(True, False), (False, True)])
def test_the_task_is_the_one_of_the_median_gain(runs, monkeypatch, redrawn, first):
    """Catches a film of the luckiest or of the first task; tasks of another band, which are not drawn again, leave the first."""
    seen = []
    monkeypatch.setattr(film, "prepare_gl", lambda: None)
    monkeypatch.setattr(film, "draw", lambda *words: seen.append(words[2]) or film.Strip(b"", "A task."))
    tasks = metarl.load(runs["maml"]).learner.domain.sample_tasks(3, "test", (5, 2))
    curve = {
        "split": "test",
        "settings": {"seed": 5 if redrawn else 6},
        "tasks": tasks.to_json(),
        "runs": {"maml": {"updates": [0, 1], "values": [[9.0, 1.0, 4.0], [8.0, 5.0, 6.0]]}},  # gains -1, 4, 2
    }
    strip = film.of_run(runs["maml"], curve, "maml")
    expected = metarl.load(runs["maml"]).learner.domain.sample_tasks(1, "test", (0, 2)) if first else tasks.rows([2])
    assert seen == [expected]
    assert strip.text == (
        "A task."
        if first
        else "A task. Of the 3 tasks of the evaluation it is the one in which adapting gained the median."
    )
