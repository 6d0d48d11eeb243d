"""What looking at a part of the states costs a trust-region step.

    python -m experiments.fisher_fraction run=runs/x

Takes a run's last parameters, samples one meta-batch, and takes the same TRPO step with Fisher products on a part of the
states. Reports, against all states: the cosine between the steps, the improvement of the loss and the true KL (which the
line search measures on all states in any case), and the seconds of the conjugate gradient.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import torch

from metarl.run.arguments import parse
from metarl.settings import SettingsError, setting

FRACTIONS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    run: str = setting("", "run directory")
    batches: int = setting(3, "meta-batches to average over", low=1)
    out: str = setting("experiments/results/fisher_fraction.json", "where the result goes")


def main() -> int:
    """Measure and write."""
    try:
        settings = Settings(**parse(sys.argv[1:], Settings, paths={"run", "out"}))
        rows = measure(settings)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from metarl.run.provenance import provenance

    command = "python -m experiments.fisher_fraction " + " ".join(sys.argv[1:])
    result = {"command": command, "rows": rows, "provenance": provenance()}
    path = pathlib.Path(settings.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{'fraction':>8} {'cosine':>7} {'loss change':>12} {'KL':>8} {'candidates':>10} {'CG seconds':>10}")
    for row in rows:
        print(
            f"{row['fraction']:8.2f} {row['cosine']:7.3f} {row['loss_change']:12.5f} {row['kl']:8.5f}"
            f" {row['line_search_steps']:10.1f} {row['seconds_cg']:10.3f}"
        )
    return 0


def measure(settings: Settings) -> list[dict[str, float]]:
    """Step from the same place with every fraction; return one averaged row a fraction."""
    from metarl.analysis.agent import load
    from metarl.core import TRPO, Objective
    from metarl.core.params import ravel
    from metarl.learner import TRAIN

    torch.set_num_threads(1)
    agent = load(settings.run)
    learner, outer = agent.learner, agent.learner.outer
    if not isinstance(outer, TRPO):
        raise SettingsError(f"{settings.run} was not trained by TRPO; there is no Fisher product to thin out")
    sums: dict[float, dict[str, float]] = {fraction: {} for fraction in FRACTIONS}
    for batch in range(settings.batches):
        seed = (agent.config.run.seed, TRAIN, 10**6 + batch)  # iterations that no training reaches
        tasks = learner.domain.sample_tasks(learner.meta_batch_size, "train", seed)
        trail = learner.explore(agent.meta, tasks, seed, learner.inner_steps)
        supports = [sample.data for sample in trail.supports]
        objective = Objective(learner.inner, supports, trail.query.data, learner.domain.query, learner.domain.workers)
        full = None
        for fraction in FRACTIONS:
            rule = dataclasses.replace(outer, fisher_fraction=fraction)
            update = rule.step(agent.meta, objective, rule.init(agent.meta))
            step = ravel(update.meta) - ravel(agent.meta)
            full = step if full is None else full
            row = {"cosine": float(step @ full / (step.norm() * full.norm()))}
            row |= {name: update.metrics[name] for name in ("loss_change", "kl", "line_search_steps", "seconds_cg")}
            for name, value in row.items():
                sums[fraction][name] = sums[fraction].get(name, 0.0) + value / settings.batches
    return [{"fraction": fraction, **row} for fraction, row in sums.items()]


if __name__ == "__main__":
    sys.exit(main())
