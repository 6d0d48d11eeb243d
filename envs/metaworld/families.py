"""Meta-World's meta-learning benchmarks as families: ML1, ML10 and ML45."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from metarl.envs.metaworld.names import ENVIRONMENTS, ML10_TEST, ML10_TRAIN, ML45_TEST, ML45_TRAIN
from metarl.families import SPLITS, EnvBatch, RLSpec, Split, TaskParameter, Tasks
from metarl.settings import SettingsError, nearest, setting

# The package draws so many goals of every class for training and for testing; the last of the first kind validate.
_GOALS, _VALIDATION = 50, 10
_RECOMMENDED: Mapping[str, Any] = {
    "algo": "maml-trpo",
    "iterations": 500,
    "meta_batch_size": 20,
    "episodes_per_task": 10,
    "inner_steps": 1,
    "inner_lr": 0.1,
    "gamma": 0.99,
    "gae_lambda": 1.0,
    "hidden_sizes": (100, 100),
    "eval_every": 50,
}


def _horizon() -> Any:
    return setting(500, "control steps in an episode; the package's own environments have 500", low=1, high=500)


def _goal_seed() -> Any:
    return setting(0, "the package's own seed, of the goals of all splits", low=0, high=2**31)


def _reward() -> Any:
    return setting("v2", "version of the rewards: v2, or v1 as in the first releases", choices=("v2", "v1"))


def _oracle() -> Any:
    return setting(False, "show the goal in the observation as MT1 does, and append the task")


@dataclasses.dataclass(frozen=True)
class MetaWorldML1:
    r"""ML1: one manipulation task of a simulated Sawyer arm; where its goal is, only the reward tells.

    Dynamics: the package's own environment (MuJoCo, an arm that a mocap body pulls along), 5 physics steps of 2.5 ms in a
    control step of 0.0125 s, horizon 500, no termination; nothing is random in an episode but its task. Reward: the
    package's, in [0, 10]. Success: what the package's ``info["success"]`` says in any step of an episode, as in its own
    evaluation, which ends the episode there.

    Task: ``goal``, the number of a goal (or of an initial position of what is to be moved, as the environment has it).
    0 to 39 train and 40 to 49 validate: the package's 50 train goals; 50 to 99 test: its 50 test goals. Observation (39):
    the hand's position, m, and opening, positions and quaternions of up to two objects, all of this one step before, and
    three zeros where the package hides the goal. Where the goal moves with an object, as a drawer's with the drawer, that
    object's position tells it: so Meta-World is. Action (4): the hand's displacement in units of 1 cm, and the
    gripper's effort, clipped to [-1, 1].

    Differs from the package: its ten validation goals are training goals there; episodes are of MuJoCo 4, while the package
    was released for 3.3.0 (its scripted policies solve as many tasks in both, see the README).

    Reference: Yu et al. (2019), arXiv:1910.10897; McLean et al. (2025), arXiv:2505.11289, for the rewards' versions.
    """

    environment: str = setting("reach-v3", "which of the package's environments", choices=ENVIRONMENTS)
    horizon: int = _horizon()
    goal_seed: int = _goal_seed()
    reward: str = _reward()
    oracle: bool = _oracle()

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    def __post_init__(self) -> None:
        """Refuse at once where the package is missing."""
        _require_package()

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec((TaskParameter("goal", 0, 2 * _GOALS - 1, ""),), self.horizon, self.oracle)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw goals, none twice before each has been drawn once."""
        goals = {"train": (0, 40), "validation": (40, 50), "test": (50, 100)}
        pairs = _draw(num_tasks, split, seed, (0,), range(*_of(goals, split)))
        return Tasks(("goal",), pairs[:, 1:])

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they are Python and step one after another, whatever the threads."""
        return _batch("ML1", (self.environment,), (self.environment,), self, num_envs)


@dataclasses.dataclass(frozen=True)
class MetaWorldML10:
    r"""ML10: ten manipulation tasks to train on, five others to test on; which one it is, and its goal, no observation says.

    Dynamics, reward, success, observation and action are those of :class:`MetaWorldML1`.

    Task: ``environment``, an index into :data:`metarl.envs.metaworld.names.ENVIRONMENTS`, and ``goal``, 0 to 49, one of the
    package's goals of that environment. Goals 40 to 49 of the training environments validate; testing is on the test
    environments alone. Every environment comes equally often: n consecutive tasks, of n environments, hold each once.

    Reference: Yu et al. (2019), arXiv:1910.10897, section 4.
    """

    horizon: int = _horizon()
    goal_seed: int = _goal_seed()
    reward: str = _reward()
    oracle: bool = _oracle()

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    def __post_init__(self) -> None:
        """Refuse at once where the package is missing."""
        _require_package()

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(_PAIR, self.horizon, self.oracle)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw environments and goals, none twice before each has been drawn once."""
        return _draw_pairs(num_tasks, split, seed, ML10_TRAIN, ML10_TEST)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they are Python and step one after another, whatever the threads."""
        return _batch("ML10", ML10_TRAIN, ML10_TEST, self, num_envs)


@dataclasses.dataclass(frozen=True)
class MetaWorldML45:
    r"""ML45: forty-five manipulation tasks to train on, five others to test on; otherwise as ML10.

    All as in :class:`MetaWorldML10`, with more environments.

    Reference: Yu et al. (2019), arXiv:1910.10897, section 4.
    """

    horizon: int = _horizon()
    goal_seed: int = _goal_seed()
    reward: str = _reward()
    oracle: bool = _oracle()

    recommended: ClassVar[Mapping[str, Any]] = _RECOMMENDED

    def __post_init__(self) -> None:
        """Refuse at once where the package is missing."""
        _require_package()

    @property
    def spec(self) -> RLSpec:
        """Sizes, ranges and units."""
        return _spec(_PAIR, self.horizon, self.oracle)

    def sample_tasks(self, num_tasks: int, split: Split, seed: int | Sequence[int]) -> Tasks:
        """Draw environments and goals, none twice before each has been drawn once."""
        return _draw_pairs(num_tasks, split, seed, ML45_TRAIN, ML45_TEST)

    def batch(self, num_envs: int, threads: int) -> EnvBatch:
        """Make simulations; they are Python and step one after another, whatever the threads."""
        return _batch("ML45", ML45_TRAIN, ML45_TEST, self, num_envs)


_PAIR = (TaskParameter("environment", 0, len(ENVIRONMENTS) - 1, ""), TaskParameter("goal", 0, _GOALS - 1, ""))


def _require_package() -> None:
    if importlib.util.find_spec("metaworld") is None:
        raise SettingsError("needs the extra metaworld: pip install -c constraints.txt -e .[metaworld]")


def _spec(parameters: tuple[TaskParameter, ...], horizon: int, oracle: bool) -> RLSpec:
    return RLSpec(parameters, 39, 4, -1.0, 1.0, horizon, 0.0125, oracle)


def _of(splits: Mapping[str, Any], split: str) -> Any:
    if split not in splits:
        raise SettingsError(f"Unknown split '{split}'. {nearest(split, splits)}")
    return splits[split]


def _draw_pairs(
    num_tasks: int, split: Split, seed: int | Sequence[int], train: tuple[str, ...], test: tuple[str, ...]
) -> Tasks:
    held = _GOALS - _VALIDATION
    both = {"train": (train, range(held)), "validation": (train, range(held, _GOALS)), "test": (test, range(_GOALS))}
    names, goals = _of(both, split)
    return Tasks(("environment", "goal"), _draw(num_tasks, split, seed, [ENVIRONMENTS.index(n) for n in names], goals))


def _draw(
    num_tasks: int, split: Split, seed: int | Sequence[int], environments: Sequence[int], goals: Sequence[int]
) -> np.ndarray:
    """Draw pairs of environment and goal, float64 (num_tasks, 2): shuffled decks of both, as the package deals its tasks.

    Each n consecutive rows hold all n environments; the rows of one environment go through all goals before one comes again.
    Row i does not depend on ``num_tasks``.
    """
    words = [int(seed)] if isinstance(seed, int | np.integer) else [int(word) for word in seed]

    def shuffled(values: Sequence[int], *stream: int) -> np.ndarray:
        return np.random.default_rng([len(words), *words, SPLITS.index(split), *stream]).permutation(values)

    pairs = []
    for deal in range(-(-num_tasks // len(environments))):
        deck, card = divmod(deal, len(goals))
        pairs += [(env, shuffled(goals, 1, env, deck)[card]) for env in shuffled(environments, 0, deal, 0)]
    return np.array(pairs[:num_tasks], dtype=np.float64).reshape(num_tasks, 2)


def _batch(
    name: str,
    train: tuple[str, ...],
    test: tuple[str, ...],
    family: MetaWorldML1 | MetaWorldML10 | MetaWorldML45,
    num_envs: int,
) -> EnvBatch:
    from metarl.envs.metaworld.batch import MetaWorldBatch, Options
    from metarl.envs.metaworld.benchmarks import Halves, load

    benchmark = load(name, Halves(train, test), family.goal_seed)
    return MetaWorldBatch(benchmark, Options(family.horizon, family.reward, family.oracle), num_envs)
