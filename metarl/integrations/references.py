"""References that Stable-Baselines3 and sb3-contrib train: PPO, SAC, and PPO with a memory or with action masks.

Nothing of these algorithms is ours. Hyper-parameters are the libraries' defaults but for the sizes of updates, so that every
number of environment steps at which a reference is scored is a whole number of updates (:func:`nearest_divisor`). A training
seeds the global generators of Python and NumPy, from which SB3 draws; torch's is put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from metarl.analysis.methods import METHODS
from metarl.domain import Seed
from metarl.families import RLSpec, Tasks
from metarl.gym.environment import Opened
from metarl.integrations.sb3 import FamilyVecEnv
from metarl.rl.groups import reset_seeds
from metarl.rl.simulations import Simulations

Advance = Callable[[int], object]  # is told of environment steps as they are taken

_UPDATE = 2048  # steps of one update: SB3's default of PPO
_BESIDE = 8  # most simulations that step together
_REPLAY = 1_000_000  # SB3's default of SAC
_RANDOM = 100  # SB3's default of SAC: steps before its first update


class Score(NamedTuple):
    """Where a reference is scored.

    Attributes:
        steps: environment steps taken on the test task before.
        seed: of the score's episodes, as the meta-learner's had it.
    """

    steps: int
    seed: Seed


@dataclass(frozen=True)
class Problem:
    """What references are trained and scored on.

    Attributes:
        family: its name.
        settings: the family's, ``oracle`` left out.
        tasks: M test tasks.
        episodes: E, of one score.
    """

    family: str
    settings: Mapping[str, Any]
    tasks: Tasks
    episodes: int

    def opened(self, told: bool) -> Opened:
        """Return the family as it is observed, by who is told the task or by who is not."""
        return Opened.of(self.family, {**self.settings, "oracle": told})


class Trained(NamedTuple):
    """What a training on the training tasks leaves: the network's tensors, and how it was trained."""

    weights: dict[str, Tensor]
    hyperparameters: dict[str, Any]


class Learned(NamedTuple):
    """Mean return of every score, fraction of its episodes that were a success (None: nobody judges), how it was trained."""

    values: list[float]
    success: list[float] | None
    hyperparameters: dict[str, Any]


def pretrain(problem: Problem, method: str, steps: int, seed: int, advance: Advance) -> Trained:
    """Train on the training tasks, a new one in every episode.

    Args:
        problem: its family.
        method: one of ``METHODS`` that is pretrained.
        steps: environment steps, kept exactly.
        seed: of tasks, episodes, network and actions.
        advance: is told of every step.
    """
    opened, update = problem.opened(METHODS[method].told), nearest_divisor(steps, _UPDATE)
    settings = {**problem.settings, "oracle": opened.oracle}
    with torch.random.fork_rng(devices=[]):
        env = FamilyVecEnv(problem.family, _beside(update, opened.spec), split="train", seed=seed, settings=settings)
        model = _on_policy(method, env, opened.spec, update, seed)
        _continue(model, steps, advance)
        weights = {name: value.clone() for name, value in model.policy.state_dict().items()}
        env.close()
    return Trained(weights, described(model))


def learn(
    problem: Problem,
    method: str,
    task: int,
    scores: Sequence[Score],
    seed: int,
    weights: Mapping[str, Tensor] | None,
    advance: Advance,
) -> Learned:
    """Train on one test task and score on the way, in episodes that are not trained on and not counted.

    Args:
        problem: tasks, and episodes of a score.
        method: one of ``METHODS``.
        task: index of the test task.
        scores: when, steps ascending; each is exactly reached.
        seed: of episodes, network and actions.
        weights: to start from; None from scratch.
        advance: is told of every step of training.
    """
    opened, row = problem.opened(METHODS[method].told), problem.tasks.rows([task])
    settings, steps = {**problem.settings, "oracle": opened.oracle}, [score.steps for score in scores]
    update = 1 if method == "sac" else nearest_divisor(math.gcd(*steps) or _UPDATE, _UPDATE)
    found = []
    with torch.random.fork_rng(devices=[]):
        beside = _beside(update, opened.spec)
        env = FamilyVecEnv(problem.family, beside, task=row.to_json()[0], seed=seed, settings=settings)
        model = (
            _sac(env, min(s for s in steps if s), steps[-1], seed)
            if method == "sac"
            else _on_policy(method, env, opened.spec, update, seed)
        )
        if weights is not None:
            model.policy.load_state_dict(dict(weights))
        for score in scores:
            _continue(model, score.steps, advance)
            found.append(play(model, opened, row, reset_seeds(score.seed, task, problem.episodes)))
        env.close()
    success = [solved for _, solved in found if solved is not None]
    return Learned([value for value, _ in found], success or None, described(model))


def play(model: BaseAlgorithm, opened: Opened, task: Tasks, seeds: np.ndarray) -> tuple[float, float | None]:
    """Play episodes of a task with sampled actions, in the simulations in which meta-learners are scored.

    Args:
        model: who plays; its policy and torch's generator stay as they are.
        opened: the family as it is observed.
        task: one row.
        seeds: of the episodes, uint32 (E,).

    Returns:
        Mean undiscounted return, and the fraction of episodes that were a success; None where the family does not judge.
    """
    most = opened.spec.at_once or len(seeds)
    returns, solved = [], []
    for first in range(0, len(seeds), most):
        part = seeds[first : first + most]
        simulations = Simulations(opened.family, task, len(part))
        rows, memory, begins = task.repeat(len(part)), None, np.ones(len(part), dtype=bool)
        seen = opened.observe(simulations.start(simulations.make(1), part), rows)
        with torch.random.fork_rng(devices=[]):  # what follows in training does not depend on how often it is scored
            for _ in range(opened.spec.horizon):
                actions, memory = _predicted(model, opened.spec, seen, memory, begins)
                seen = opened.observe(simulations.step(opened.actions(actions, len(part))), rows)
                begins = np.zeros(len(part), dtype=bool)
                if not simulations.alive.any():
                    break
        returns.append(simulations.record()["rewards"].sum(0, dtype=np.float64))
        solved += [] if simulations.solved is None else [simulations.solved]
    return float(np.concatenate(returns).mean()), float(np.concatenate(solved).mean()) if solved else None


def nearest_divisor(number: int, goal: int) -> int:
    """Return the divisor of a number whose ratio to a goal is nearest to 1.

    >>> nearest_divisor(4000, 2048), nearest_divisor(2000, 64), nearest_divisor(10, 2048)
    (2000, 80, 10)
    """
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return min({*small, *(number // n for n in small)}, key=lambda n: (abs(math.log(n / goal)), n))


def described(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the hyper-parameters that a model has, read from the model itself, as plain values."""
    kind = type(model)
    told: dict[str, Any] = {
        "class": f"{kind.__module__.partition('.')[0]}.{kind.__name__}",
        "simulations": model.n_envs,
    }
    for name in (
        *("n_steps", "batch_size", "n_epochs", "learning_rate", "gamma", "gae_lambda", "ent_coef", "vf_coef"),
        *(
            "max_grad_norm",
            "normalize_advantage",
            "tau",
            "learning_starts",
            "train_freq",
            "gradient_steps",
            "buffer_size",
        ),
    ):
        value = getattr(model, name, None)
        if value is not None:
            told[name] = value if isinstance(value, bool | int | float | str) else str(value)
    if "clip_range" in vars(model):
        told["clip_range"] = float(vars(model)["clip_range"](1.0))
    return {**told, "network": " ".join(str(model.policy).split())}


def _continue(model: BaseAlgorithm, steps: int, advance: Advance) -> None:
    """Train until so many environment steps have been taken since the beginning."""
    missing = steps - model.num_timesteps
    if missing <= 0:
        return

    def stepped(found: Mapping[str, Any], _: Mapping[str, Any]) -> bool:
        advance(found["env"].num_envs)
        return True

    model.learn(missing, callback=stepped, reset_num_timesteps=model.num_timesteps == 0)
    assert model.num_timesteps == steps, "updates divide the number of steps"


def _beside(update: int, spec: RLSpec) -> int:
    """Return how many simulations step together: a divisor of an update's steps."""
    most = min(_BESIDE, spec.at_once or _BESIDE)
    return max(count for count in range(1, most + 1) if update % count == 0)


def _on_policy(method: str, env: FamilyVecEnv, spec: RLSpec, update: int, seed: int) -> OnPolicyAlgorithm:
    steps, normal = update // env.num_envs, update > 1  # advantages of a single step have no deviation
    if method == "recurrent-ppo":
        from sb3_contrib import RecurrentPPO

        batch = nearest_divisor(update, 128)
        return RecurrentPPO(
            "MlpLstmPolicy",
            env,
            n_steps=steps,
            batch_size=batch,
            normalize_advantage=normal,
            seed=seed,
            device="cpu",
        )
    kind: type[Any] = PPO
    if spec.choices is not None and spec.choices.masked:
        from sb3_contrib import MaskablePPO

        kind = MaskablePPO
    batch = nearest_divisor(update, 64)
    return kind("MlpPolicy", env, n_steps=steps, batch_size=batch, normalize_advantage=normal, seed=seed, device="cpu")


def _sac(env: FamilyVecEnv, first: int, most: int, seed: int) -> SAC:
    """Return SAC that has learned something at its first score, and whose memory is no larger than what it will see."""
    starts = min(_RANDOM, first // 2)
    return SAC("MlpPolicy", env, learning_starts=starts, buffer_size=min(_REPLAY, most), seed=seed, device="cpu")


def _predicted(
    model: BaseAlgorithm, spec: RLSpec, seen: np.ndarray, memory: Any, begins: np.ndarray
) -> tuple[Any, Any]:
    """Return sampled actions and what is remembered."""
    if spec.choices is None or not spec.choices.masked:
        return model.predict(seen, memory, begins, deterministic=False)
    predict: Callable[..., tuple[Any, Any]] = model.predict  # a MaskablePPO's knows one argument more
    last = spec.observation_size  # behind it an oracle has the task
    masks = seen[:, last - sum(spec.choices.counts) : last] > 0.5
    return predict(seen, memory, begins, deterministic=False, action_masks=masks)
