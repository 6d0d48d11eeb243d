"""How many of Meta-World's tasks its own scripted policies solve: ``python -m experiments.metaworld_experts save=true``.

They were written for the MuJoCo that the package was released with. Here they act in our families, which run it on MuJoCo 4,
and so tell whether it is still the same benchmark. Needs the extra ``metaworld``. For the other side of the comparison, run the
file by itself where the package has the MuJoCo that it asks for, and metarl is not installed:
``pip install metaworld==3.1.1 packaging && python experiments/metaworld_experts.py``, which prints its result.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

RESULT = pathlib.Path(__file__).parent / "results" / "metaworld_experts.json"
GOALS = 5
# where a policy's name is not its environment's
NAMES = {"PegInsertSide": "PegInsertionSide"}
Play = Callable[[str, Any], list[bool]]  # environment and expert to the success of each goal


def main() -> int:
    """Play all environments, print, and save where asked."""
    whole = importlib.util.find_spec("metarl") is not None
    save = whole and "save=true" in sys.argv[1:]
    warnings.filterwarnings("ignore", message="Constant")  # experts whose actions are beyond the bounds
    rates = played(in_family if whole else in_package)
    mean = sum(rates.values()) / len(rates)
    result: dict[str, Any] = {"goals": GOALS, "mean": mean, "rates": rates}
    if whole:
        from metarl.run.provenance import provenance

        command = shlex.join(["python", "-m", "experiments.metaworld_experts", *sys.argv[1:]])
        result |= {"command": command, "metaworld": importlib.metadata.version("metaworld"), "provenance": provenance()}
    else:
        versions = {name: importlib.metadata.version(name) for name in ("metaworld", "mujoco", "gymnasium", "numpy")}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "commit": commit}
        result |= {"command": "python experiments/metaworld_experts.py", "versions": versions, "provenance": machine}
    print(json.dumps(result, indent=1))
    if save:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def played(play: Play) -> dict[str, float]:
    """Return the success rate in every environment."""
    names = importlib.import_module("metaworld").ML1.ENV_NAMES
    policies, rates = importlib.import_module("metaworld.policies"), {}
    for name in names:
        title = "".join(word.capitalize() for word in name.split("-")[:-1])
        expert = getattr(policies, f"Sawyer{NAMES.get(title, title)}V3Policy")()
        rates[name] = float(np.mean(play(name, expert)))
        print(f"{name}  {rates[name]:.2f}", file=sys.stderr, flush=True)
    return rates


def in_family(name: str, expert: Any) -> list[bool]:
    """Play the first train goals in our family, with the goal shown."""
    import metarl

    family = metarl.make("metaworld-ml1", environment=name, oracle=True)
    batch, solved = family.batch(GOALS, 1), np.zeros(GOALS, dtype=bool)
    tasks = metarl.Tasks(("goal",), np.arange(GOALS, dtype=float)[:, None])
    observations = batch.reset(tasks, np.zeros(GOALS, dtype=np.uint32))
    for _ in range(family.horizon):
        actions = np.stack([expert.get_action(row.astype(np.float64)) for row in observations]).astype(np.float32)
        observations = batch.step(actions).observations
        solved |= batch.success()
        if solved.all():
            break
    return [bool(won) for won in solved]


def in_package(name: str, expert: Any) -> list[bool]:
    """Play the same goals in the package alone: those of MT1, which shows them."""
    benchmark = importlib.import_module("metaworld").MT1(name, seed=0)
    env, solved = benchmark.train_classes[name](), []
    for task in benchmark.train_tasks[:GOALS]:
        env.set_task(task)
        observation, won = env.reset()[0], False
        for _ in range(500):
            action = np.clip(expert.get_action(observation), -1, 1).astype(np.float32)
            observation, _, _, _, info = env.step(action)
            won = won or info["success"] > 0
            if won:
                break
        solved.append(won)
    return solved


if __name__ == "__main__":
    sys.exit(main())
