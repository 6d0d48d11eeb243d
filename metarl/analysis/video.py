"""A video of one task before and after adapting, side by side."""

from __future__ import annotations

import errno
import itertools
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import imageio.v2 as imageio
import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from metarl.analysis.curves import adapt, with_rates
from metarl.core.params import Params, expand
from metarl.domain import Seed
from metarl.families import Tasks
from metarl.gym.environment import SIZE, Renderable
from metarl.learner import MetaLearner
from metarl.rl.domain import RLDomain
from metarl.rl.rollouts import to_device
from metarl.settings import SettingsError


def record(
    learner: MetaLearner,
    meta: Params,
    task: Tasks,
    path: pathlib.Path,
    seed: Seed,
    steps: int,
    rates: Sequence[float] = (),
) -> tuple[float, float]:
    """Write an MP4 of one episode before and one after ``steps`` inner updates, with the noise-free policy.

    Args:
        learner: brings family, policy and inner rule.
        meta: meta-parameters.
        task: one row.
        path: file to write.
        seed: of the adaptation's rollouts; its first word is that of the episodes' start.
        steps: inner updates.
        rates: step size of each update, the last one for all that follow; empty keeps the learner's.

    Returns:
        The two episodes' returns.

    Raises:
        SettingsError: if the family cannot be drawn or this machine cannot draw.
        OSError: if the file cannot be written.
    """
    domain = learner.domain
    if not isinstance(domain, RLDomain):
        raise SettingsError("video=true needs a reinforcement-learning run; this one learns from labelled shots")
    env = opened(domain, task)
    adapted, _ = adapt(with_rates(learner, steps, rates), meta, task, seed)
    stages = {"before adapting": expand(meta, 1), f"after {steps} update{'s' * (steps != 1)}": adapted}
    films, returns = [], []
    for title, params in stages.items():
        frames, total = _episode(domain, params, task, env, seed[0], title)
        films.append(frames)
        returns.append(total)
    path.parent.mkdir(parents=True, exist_ok=True)
    fps = domain.family.spec.frames_per_second
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        imageio.mimwrite(temporary, _beside(films), fps=fps, macro_block_size=16)
        _refuse_unplayable(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return returns[0], returns[1]


def opened(domain: RLDomain, task: Tasks) -> Renderable:
    """Make one simulation and draw it once, so that a machine that cannot draw is found out first."""
    try:
        with warnings.catch_warnings(action="ignore"):  # GL libraries warn before they fail
            env = domain.family.batch(1, 1)
            if isinstance(env, Renderable):
                env.reset(task, np.zeros(1, dtype=np.uint32))
                env.render(0, *SIZE)
                return env
    except gymnasium.error.DependencyNotInstalled as error:  # says its remedy itself
        raise SettingsError(f"video=true: {error}") from error
    except Exception as error:  # GL libraries fail in their own ways; none of them is a reason to crash
        if isinstance(error, SettingsError) and "MUJOCO_GL" not in str(
            error
        ):  # a family's, such as a simulator's absence
            raise SettingsError(f"video=true: {error}") from error
        chosen = os.environ.get("MUJOCO_GL", "")
        remedy = (
            "install EGL (Debian: libegl1 libgl1-mesa-dri)"
            if chosen in ("", "egl")
            else f"MUJOCO_GL={chosen} does not work here: try MUJOCO_GL=egl"
        )
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingsError(f"video=true: this machine cannot draw ({reason}); {remedy}") from error
    raise SettingsError(f"video=true: the family {type(domain.family).__name__} cannot be drawn (no render method)")


def _episode(
    domain: RLDomain, params: Params, task: Tasks, env: Renderable, seed: int, title: str
) -> tuple[list[np.ndarray], float]:
    """Return the frames of one episode, one a control step, and its return."""
    named = ", ".join(f"{name} {value:.2f}" for name, value in task.to_json()[0].items())
    total, frames = 0.0, []
    for total in play(domain, params, task, env, seed):
        frames.append(captioned(env.render(0, *SIZE), f"{title}   return {total:.0f}   task: {named}"))
    return frames, total


def play(domain: RLDomain, params: Params, task: Tasks, env: Renderable, seed: int) -> Iterator[float]:
    """Play one episode with the noise-free policy; after every control step, yield its return so far."""
    observation, total = env.reset(task, np.array([seed])), 0.0
    for _ in range(domain.family.spec.horizon):
        seen = domain.observe(to_device(observation, next(iter(params.values())).device)[None], task)
        with torch.no_grad():
            action = domain.policy.mode(domain.policy.distribution(params, seen))[0].cpu().numpy()
        observation, reward, terminated, truncated = env.step(action)
        total += float(reward[0])
        yield total
        if terminated[0] or truncated[0]:
            break


def _beside(films: Sequence[Sequence[np.ndarray]]) -> list[Any]:
    """Put films side by side; one that ends early stands still."""
    longest = max(len(film) for film in films)
    held = [list(itertools.islice(itertools.chain(film, itertools.repeat(film[-1])), longest)) for film in films]
    return [np.concatenate(frames, axis=1) for frames in zip(*held, strict=True)]


def _refuse_unplayable(path: pathlib.Path) -> None:
    """Read a film's first frame: the encoder is a process of its own, and its end on a full disk is not reported."""
    try:
        iio.imread(path, index=0, plugin="FFMPEG")
    except (OSError, RuntimeError, IndexError) as error:
        raise OSError(errno.EIO, "the encoder left a file that cannot be played (is the disk full?)") from error


def captioned(frame: np.ndarray, text: str, size: int = 15) -> np.ndarray:
    """Write into the upper left corner of a picture, dark on a light ground: legible on any picture."""
    image = Image.fromarray(frame)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=size)
    left, top, right, bottom = draw.textbbox((8, 6), text, font=font)
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=(255, 255, 255))
    draw.text((8, 6), text, fill=(0, 0, 0), font=font)
    return np.asarray(image)
