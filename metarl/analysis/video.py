"""A video of one task before and after adapting, side by side."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any, Protocol, runtime_checkable

import imageio.v2 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from metarl.core.params import Params, expand
from metarl.families import EnvBatch, Step, Tasks
from metarl.learner import TEST, MetaLearner
from metarl.rl.domain import RLDomain
from metarl.rl.rollouts import to_device
from metarl.settings import SettingsError

SIZE = (480, 320)


@runtime_checkable
class Renderable(Protocol):
    """An :class:`~metarl.families.EnvBatch` that can be drawn."""

    def reset(self, tasks: Tasks, seeds: np.ndarray) -> np.ndarray:
        """Start episodes."""
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Step all simulations."""
        ...

    def render(self, env: int, width: int, height: int) -> np.ndarray:
        """Draw one simulation, uint8 (height, width, 3)."""
        ...


def prepare_gl() -> None:
    """Choose an off-screen renderer where there is no display; MuJoCo reads the choice when it is imported."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def record(learner: MetaLearner, meta: Params, task: Tasks, steps: int, path: pathlib.Path, seed: int) -> pathlib.Path:
    """Write an MP4 of one episode before and one after ``steps`` inner updates, with the noise-free policy.

    Args:
        learner: brings family, policy and inner rule.
        meta: meta-parameters.
        task: one row.
        steps: inner updates.
        path: file to write.
        seed: of the adaptation's rollouts and of the episode's start.

    Raises:
        SettingsError: if the family cannot be drawn or this machine cannot draw.
    """
    domain = learner.domain
    if not isinstance(domain, RLDomain):
        raise SettingsError("video=true needs a reinforcement-learning run")
    env = domain.family.batch(1, 1)
    if not isinstance(env, Renderable):
        raise SettingsError(f"video=true: the family {type(domain.family).__name__} cannot be drawn (no render method)")
    adapted = learner.explore(meta, task, (seed, TEST), steps).params
    named = ", ".join(f"{name} {value:.2f}" for name, value in task.to_json()[0].items())
    before, left = _episode(domain, expand(meta, 1), task, env, seed, f"before adapting   task: {named}")
    after, right = _episode(
        domain, adapted, task, env, seed, f"after {steps} update{'s' * (steps != 1)}   task: {named}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    fps = round(1 / domain.family.spec.control_step) if domain.family.spec.control_step else 20
    frames: list[Any] = [np.concatenate([a, b], axis=1) for a, b in zip(before, after, strict=False)]
    imageio.mimwrite(path, frames, fps=fps, macro_block_size=16)
    print(f"video: {path}  (return {left:.1f} before, {right:.1f} after)")
    return path


def _episode(
    domain: RLDomain, params: Params, task: Tasks, env: EnvBatch, seed: int, title: str
) -> tuple[list[np.ndarray], float]:
    assert isinstance(env, Renderable)
    observation, total, frames = env.reset(task, np.array([seed])), 0.0, []
    for _ in range(domain.family.spec.horizon):
        seen = domain.observe(to_device(observation, params["log_std"].device)[None], task)
        with torch.no_grad():
            action = domain.policy.distribution(params, seen).mean[0].cpu().numpy()
        observation, reward, terminated, truncated = env.step(action)
        total += float(reward[0])
        frames.append(_captioned(_drawn(env), f"{title}   return {total:.0f}"))
        if terminated[0] or truncated[0]:
            break
    return frames, total


def _drawn(env: Renderable) -> np.ndarray:
    try:
        return env.render(0, *SIZE)
    except Exception as error:  # GL libraries fail in their own ways; none of them is a reason to crash
        raise SettingsError(
            f"video=true: this machine cannot draw ({type(error).__name__}: {error}); install EGL (Debian: libegl1"
            " libgl1-mesa-dri) or set MUJOCO_GL=osmesa"
        ) from error


def _captioned(frame: np.ndarray, text: str) -> np.ndarray:
    image = Image.fromarray(frame)
    font = ImageFont.load_default(size=15)
    ImageDraw.Draw(image).text((8, 6), text, fill=(255, 255, 255), font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(image)
