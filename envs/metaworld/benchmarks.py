"""Meta-World's benchmarks with their goals, made once a process and held to what was published.

The package has handed out test tasks for train tasks: in 3.0.0 and 3.1.1 ``gymnasium.make_vec("Meta-World/ML1-train", ...)``
holds those of the test split, because both of its ids share one variable; and ML25 trains and tests on ``basketball-v3``. So
splits come from its ``Benchmark`` classes instead, never from its ids, and nothing is used before :func:`verify` has compared
it with what was published.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metarl.families import FamilyError

GOALS = 50  # of every class of tasks, as the package draws them
_one_at_a_time = threading.Lock()  # the package draws goals from NumPy's global generator, which it then restores


@dataclass(frozen=True)
class Halves:
    """Classes of tasks by split, as published.

    Attributes:
        train: names of the classes that are trained on.
        test: names of the classes that are tested on: others, or (ML1) the same with other goals.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def one_class(self) -> bool:
        """Whether the splits differ in goals alone."""
        return self.train == self.test


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's environments and goals.

    Attributes:
        classes: the package's environment classes by name.
        goals: the package's own ``Task`` objects by class; of ML1 those of the train half, then those of the test half.
    """

    classes: Mapping[str, Any]
    goals: Mapping[str, Sequence[Any]]


def load(name: str, halves: Halves, seed: int) -> Benchmark:
    """Make a benchmark with its goals; the same arguments give the same object. Seconds (ML1) to a minute (ML45).

    Args:
        name: ``"ML1"``, ``"ML10"`` or ``"ML45"``.
        halves: its classes of tasks.
        seed: the package's own seed of its goals.

    Raises:
        FamilyError: if the package's benchmark is not the published one.
    """
    with _one_at_a_time:
        return _loaded(name, halves, seed)


@functools.cache
def _loaded(name: str, halves: Halves, seed: int) -> Benchmark:
    import metaworld

    follow_mujoco()
    package = metaworld.ML1(halves.train[0], seed=seed) if name == "ML1" else getattr(metaworld, name)(seed=seed)
    verify(name, package, halves)
    goals = collections.defaultdict(list)
    for task in [*package.train_tasks, *package.test_tasks]:
        goals[task.env_name].append(task)
    return Benchmark({**package.train_classes, **package.test_classes}, goals)


def verify(name: str, package: Any, halves: Halves) -> None:
    """Compare the package's benchmark with what was published.

    Every split must hold the published classes of tasks, 50 goals of each, and no goal may occur twice, in one split or in
    two.

    Args:
        name: of the benchmark, for messages.
        package: an object of the package's ``Benchmark``.
        halves: the published classes.

    Raises:
        FamilyError: on the first difference.
    """
    known: dict[tuple[str, bytes], str] = {}
    for split, wanted in (("train", halves.train), ("test", halves.test)):
        classes, tasks = getattr(package, f"{split}_classes"), getattr(package, f"{split}_tasks")
        odd = sorted(set(classes) ^ set(wanted))
        _require(not odd, f"{name}'s {split} classes differ from the published ones in {', '.join(odd)}")
        counts = collections.Counter(task.env_name for task in tasks)
        odd = sorted(name for name in {*counts, *wanted} if counts[name] != GOALS * (name in wanted))
        _require(not odd, f"{name}'s {split} tasks are not {GOALS} of each of its classes (see {', '.join(odd)})")
        for task in tasks:
            before = known.setdefault((task.env_name, task.data), split)
            _require(
                before == split, f"{name} has the same goal of {task.env_name} among its {before} and {split} tasks"
            )
    _require(len(known) == GOALS * len(halves.train + halves.test), f"{name} has the same goal twice in one split")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise FamilyError(f"the installed metaworld mixes up its splits: {rule}; install another version of it")


def follow_mujoco() -> None:
    """Let Meta-World make its simulators with MuJoCo 4, whose constraints are described by one number more.

    The package overwrites each weld's data with eleven numbers (anchor, relative pose, torque scale) and fails where there
    are twelve. Here the same eleven are set, and the twelfth stays as MuJoCo's compiler leaves it, 1.
    """
    import mujoco
    from metaworld.sawyer_xyz_env import SawyerMocapBase

    if mujoco.mjNEQDATA == len(_WELD):
        return

    def reset_mocap_welds(env: Any) -> None:
        welds = env.model.eq_type == mujoco.mjtEq.mjEQ_WELD
        env.model.eq_data[welds, : len(_WELD)] = _WELD

    SawyerMocapBase.reset_mocap_welds = reset_mocap_welds


_WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)  # the package's own
