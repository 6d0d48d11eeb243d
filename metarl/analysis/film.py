"""A film strip of a run for its page: one task before and after adapting, a few moments of an episode each, as a PNG."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from metarl.analysis.agent import load
from metarl.analysis.curves import adapt, with_rates
from metarl.analysis.video import captioned, opened, play
from metarl.core.params import Params, expand
from metarl.domain import Seed
from metarl.families import EnvFault, FamilyError, Tasks
from metarl.gym.environment import prepare_gl
from metarl.learner import TEST, MetaLearner
from metarl.rl.domain import RLDomain
from metarl.run.directory import EVALUATION, read_config
from metarl.settings import SettingsError

_MOMENTS, _SIZE = 5, (240, 160)


class Strip(NamedTuple):
    """A picture, PNG, and a sentence on it; without a picture the sentence says why there is none."""

    png: bytes
    text: str


def of_run(run: pathlib.Path, curve: Mapping[str, Any] | None, name: str) -> Strip:
    """Return the film strip that a run's evaluation has, or draw one of the test task in which adapting gained the median.

    Without an evaluation, or where its tasks cannot be drawn again, it is the first test task.

    Args:
        run: the run directory, in which nothing is written.
        curve: what ``curve.json`` holds, which says how often and with what step sizes the run adapts; None takes training's.
        name: of the run there.
    """
    kept = sorted((run / EVALUATION).glob("film*.png"))
    if kept:
        return Strip(kept[0].read_bytes(), f"From {EVALUATION}/{kept[0].name}.")
    config = read_config(run)
    own = {} if curve is None else curve["runs"].get(name, {})
    steps = max(own.get("updates", [max(1, config.run.inner_steps)]))
    note = {} if curve is None else curve.get("notes", {}).get(name, {})
    try:
        if config.algo_settings.get("memory_size"):
            raise SettingsError("a run of algo=rl2 has no inner updates to show")
        prepare_gl()
        agent = load(run)
        task, which = _typical(agent.learner, curve, own)
        rates = () if list(note.get("inner_lr", [])) == [config.run.inner_lr] else tuple(note.get("inner_lr", ()))
        strip = draw(agent.learner, agent.meta, task, (0, TEST, 1), steps, rates)
        return strip._replace(text=f"{strip.text} {which}".strip())
    except (SettingsError, FamilyError, EnvFault) as error:
        return Strip(b"", f"No film strip: {str(error).removeprefix('video=true: ')}.")


def _typical(learner: MetaLearner, curve: Mapping[str, Any] | None, own: Mapping[str, Any]) -> tuple[Tasks, str]:
    """Return the task in which the last update gained the median of the evaluation's tasks, and a sentence that says so."""
    sample = learner.domain.sample_tasks
    if curve is not None and "values" in own and curve.get("split") == "test":
        values = np.asarray(own["values"])
        gains, seed = values[-1] - values[0], curve.get("settings", {}).get("seed", 0)
        at = int(gains.argsort()[len(gains) // 2])
        task = sample(len(gains), "test", (seed, TEST)).rows([at])
        if task.to_json() == curve["tasks"][at : at + 1]:
            return (
                task,
                f"Of the {len(gains)} tasks of the evaluation it is the one in which adapting gained the median.",
            )
    return sample(1, "test", (0, TEST)), ""


def draw(learner: MetaLearner, meta: Params, task: Tasks, seed: Seed, steps: int, rates: Sequence[float] = ()) -> Strip:
    """Draw a task before and after adapting, with the noise-free policy: a row each, moments evenly over the episode.

    Args:
        learner: brings family, policy and inner rule.
        meta: meta-parameters.
        task: one row.
        seed: of the adaptation's rollouts; its first word is that of the episodes' start.
        steps: inner updates; 0 shows the policy as it is.
        rates: step size of each update, the last one for all that follow; empty keeps the learner's.

    Raises:
        SettingsError: if the family cannot be drawn or this machine cannot draw.
    """
    domain = learner.domain
    if not isinstance(domain, RLDomain):
        raise SettingsError("labelled shots are not drawn")
    env = opened(domain, task)
    stages = {"before adapting": expand(meta, 1)}
    if steps:
        stages[f"after {steps} update{'s' * (steps > 1)}"] = adapt(with_rates(learner, steps, rates), meta, task, seed)[
            0
        ]
    rows, told = [], []
    for title, params in stages.items():
        # once to know how long it is: pictures take far longer than steps
        returns = list(play(domain, params, task, env, seed[0]))
        length = len(returns)
        chosen = {round(at) for at in np.linspace(0, length - 1, min(_MOMENTS, length))}
        frames = []
        for at, _ in enumerate(play(domain, params, task, env, seed[0])):
            if at in chosen:
                frames.append(captioned(env.render(0, *_SIZE), f"{title}: step {at + 1}", size=12))
        frames += [np.full_like(frames[0], 255)] * (_MOMENTS - len(frames))
        rows.append(np.concatenate(frames, axis=1))
        told.append(f"{returns[-1]:.4g} {title}")
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, format="PNG", optimize=True)
    named = ", ".join(f"{key} {value:.2f}" for key, value in list(task.to_json()[0].items())[:4])
    text = (
        f"Test task {named}: return {', '.join(told)}; one episode each of the policy without its noise, to look at. How well it"
        " adapts is told by the curves."
    )
    return Strip(file.getvalue(), text)
