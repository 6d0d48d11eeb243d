"""Every metric, defined once: name, unit, meaning. This table is also the documentation.

``python -m metarl.run.metrics`` prints it.
"""

from __future__ import annotations

import fnmatch
from typing import NamedTuple


class Metric(NamedTuple):
    """One logged number.

    Attributes:
        name: key in ``metrics.jsonl``; ``*`` stands for the family's metric or a number.
        unit: unit.
        meaning: what it is.
        tag: TensorBoard tag; empty where it is not drawn.
    """

    name: str
    unit: str
    meaning: str
    tag: str


METRICS = (
    Metric("iteration", "", "index of the meta-update, from 0", ""),
    Metric("env_steps", "control steps", "support and query steps of training so far, without evaluation", ""),
    Metric(
        "pre_*", "family's", "mean over tasks before adapting; of a trial its first episode (RL²)", "meta_train/pre"
    ),
    Metric(
        "post_*",
        "family's",
        "mean over tasks after adapting, on fresh data; of a trial its last episode",
        "meta_train/post",
    ),
    Metric("pre_success", "fraction", "of episodes before adapting, where the family judges", "meta_train/pre_success"),
    Metric("post_success", "fraction", "of episodes after adapting, likewise", "meta_train/post_success"),
    Metric("gain_ci95", "family's", "half width of the 95 % interval over tasks of post - pre", "meta_train/gain_ci95"),
    Metric("loss", "", "query loss before the meta-update", "train/loss"),
    Metric("loss_change", "", "query loss after minus before the meta-update", "train/loss_change"),
    Metric("kl", "nats", "mean KL(old||new) after adaptation, over all query states", "train/kl"),
    Metric("entropy", "nats", "mean entropy of the adapted policies", "train/entropy"),
    Metric("gradient_norm", "", "Euclidean norm of the meta-gradient", "train/gradient_norm"),
    Metric("step_norm", "", "Euclidean norm of the accepted step", "train/step_norm"),
    Metric("cg_residual", "", "|g - Hx| / |g| after the conjugate gradient", "train/cg_residual"),
    Metric("line_search_steps", "", "candidates tried", "train/line_search_steps"),
    Metric("line_search_accepted", "0 or 1", "whether a candidate was accepted", "train/line_search_accepted"),
    Metric("rejected_updates", "", "meta-updates rejected so far (parameters left as they were)", "health/rejected"),
    Metric("episode_length", "control steps", "mean over the query episodes", "meta_train/episode_length"),
    Metric("validation_success_*", "fraction", "of validation episodes, likewise", "validation/*"),
    Metric("validation_trial_*", "family's", "mean over all episodes of the validation trials (RL²)", "validation/*"),
    Metric(
        "validation_*",
        "family's",
        "mean over the validation tasks after 0, 1, ... inner updates, or episodes (RL²)",
        "validation/*",
    ),
    Metric(
        "env_steps_per_second", "1/s", "training steps of the iteration over its seconds", "time/env_steps_per_second"
    ),
    Metric("seconds_sampling", "s", "simulator and policy", "time/sampling"),
    Metric("seconds_physics", "s", "simulator with observation and reward, mean over the groups", "time/physics"),
    Metric("seconds_adaptation", "s", "baseline, advantages and inner updates while sampling", "time/adaptation"),
    Metric("seconds_meta_gradient", "s", "gradient through the adaptation", "time/meta_gradient"),
    Metric("seconds_cg", "s", "conjugate gradient with its Fisher products", "time/cg"),
    Metric("seconds_line_search", "s", "evaluations of candidate steps", "time/line_search"),
    Metric("seconds_iteration", "s", "the whole iteration, without validation", "time/iteration"),
    Metric("seconds_validation", "s", "validation, where there was one", "time/validation"),
)

# What differs between two runs of the same settings and seed.
WALL_CLOCK = ("seconds_*", "env_steps_per_second")


def definition(name: str) -> Metric | None:
    """Return the definition of a logged key."""
    exact = next((metric for metric in METRICS if metric.name == name), None)
    return exact or next((metric for metric in METRICS if fnmatch.fnmatchcase(name, metric.name)), None)


def tag(name: str) -> str:
    """Return the TensorBoard tag of a logged key, or an empty string."""
    metric = definition(name)
    if metric is None:
        return ""
    return metric.tag.replace("*", name.removeprefix("validation_"))


def is_wall_clock(name: str) -> bool:
    """Tell whether a key is a time, which no seed reproduces."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WALL_CLOCK)


def table() -> str:
    """Return the definitions as a Markdown table."""
    meanings = [m.meaning.replace("|", "\\|") for m in METRICS]
    rows = [f"| `{m.name}` | {m.unit} | {text} |" for m, text in zip(METRICS, meanings, strict=True)]
    return "\n".join(["| metric | unit | meaning |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(table())
