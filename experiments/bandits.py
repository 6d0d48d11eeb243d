"""Bernoulli bandits, K = 5 and n = 100: what adapting closes of the gap to knowing the best arm, and how reference players do.

    python -m experiments.bandits             trains (resumes what is there), evaluates, writes the results
    python -m experiments.bandits tiny=true   the same with a budget of seconds, elsewhere

By the protocol *fit n pulls, judge on n fresh pulls*, MAML is compared with an oracle, and with playing the arm that paid
best in the very pulls it was fitted on. By *one trial of N pulls*, in which every pull counts, RL² and MAML are compared with
reference players, and these with what is known of them in closed form. Runs are kept under ``runs/bandit-bernoulli/``, results
under ``experiments/results/bandit-bernoulli/``.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import recording
from metarl.run.arguments import parse
from metarl.run.command import guarded
from metarl.settings import setting

ENV = "bandit-bernoulli"
MARK = "<!-- bandits -->"
STEPS = 3
# RL² in one trial of 100 pulls: a small memory, and many trials of many tasks at once
RL2 = (
    *("algo=rl2", "algo.trial_episodes=1", "algo.memory_size=48", "env.protocol=trial", "gamma=1", "gae_lambda=0.95"),
    *("meta_batch_size=60", "episodes_per_task=10", "chunk_tasks=30", "entropy_bonus=0.01"),
)
ITERATIONS, EPOCHS = 900, 6
# MAML in a trial: pulls between two updates, and step sizes, the best of which is chosen on validation tasks
SIZES, RATES = (5, 10, 20, 25, 50), (0.25, 0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    tiny: bool = setting(False, "a budget of seconds, under runs/tiny, to see that everything works")
    seeds: int = setting(3, "seeds of MAML", low=1)
    tasks: int = setting(2000, "test tasks that MAML adapts to", low=2)
    trials: int = setting(10_000, "test tasks in which trials are played", low=2)
    train: bool = setting(True, "false evaluates what is there")


def main() -> int:
    """Train, evaluate, write."""
    return guarded(lambda: _main(Settings(**parse(sys.argv[1:], Settings))))


def _main(settings: Settings) -> int:
    runs, results = recording.folders(ENV, settings.tiny)
    budget: list[str] = []
    if settings.tiny:
        settings = dataclasses.replace(settings, tasks=20, trials=50)
        budget = ["iterations=2", "meta_batch_size=4", "eval_every=1", "eval_tasks=2"]
    members = {f"maml-s{seed}": [f"seed={seed}", "threads=1", *budget] for seed in range(settings.seeds)}
    own = ["episodes_per_task=2"] if settings.tiny else [f"iterations={ITERATIONS}"]
    own += [f"algo.epochs={EPOCHS}", f"algo.decay_steps={EPOCHS * (2 if settings.tiny else ITERATIONS)}"]
    remembering = {"rl2-s0": [*_without(RL2, own + budget), "seed=0", *budget, *own]}
    if settings.train:
        recording.train(ENV, runs, members | remembering)
    labels = recording.trained(runs, members)
    rl2 = [label for label in remembering if (runs / label / "checkpoints").is_dir()]
    from metarl.run.provenance import provenance

    summary: dict[str, Any] = {
        "runs": {label: recording.facts(runs / label) for label in (*labels, *rl2)},
        "evaluation": " ".join(["python -m experiments.bandits", *sys.argv[1:]]),
        "fit": fit([runs / label for label in labels], settings.tasks),
        "trial": trial(settings.trials, [runs / label for label in labels], [runs / label for label in rl2]),
        "provenance": provenance(),
    }
    recording.write(results / "summary.json", summary)
    recording.keep(runs, labels, results, "reward per pull")
    if rl2:
        recording.keep(runs, rl2, results / "trial", "reward per trial")
    draw(summary["fit"], results / "curve.png")
    text = report(summary)
    (results / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    if not settings.tiny:
        recording.insert(recording.README, MARK, f"{recording.pictures(results, recording.README)}\n{text}")
    return 0


def fit(runs: Sequence[pathlib.Path], count: int) -> dict[str, Any]:
    """Adapt every run to test tasks; compare with the oracle and with the best arm of all pulls so far.

    Args:
        runs: the seeds of one training.
        count: test tasks.

    Returns:
        Rewards per pull with intervals over tasks, and the parts of the gap from unadapted to oracle that are closed.
    """
    from metarl.analysis.agent import load
    from metarl.analysis.curves import interval
    from metarl.learner import TEST

    scores, best = [], []
    for run in runs:
        agent = load(run)
        tasks = agent.learner.domain.sample_tasks(count, "test", (0, TEST))
        adapted, greedy = adapt(agent, tasks, (0, TEST, 1))
        scores.append(adapted)
        best.append(greedy)
    oracle, stacked, arms = tasks.values.max(1), np.stack(scores), np.stack(best)
    return {
        "tasks": count,
        "pulls": agent.config.run.episodes_per_task,
        "oracle": {"mean": float(oracle.mean()), "ci95": interval(oracle).tolist()},
        "maml": recording.mean_of_seeds(stacked) | {"closed": _closed(stacked, stacked[:, 0], oracle)},
        "best_empirical_arm": recording.mean_of_seeds(arms) | {"closed": _closed(arms, stacked[:, 0], oracle)},
    }


def adapt(agent: Any, tasks: Any, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Adapt to M tasks; return rewards per pull after 0 to ``STEPS`` updates, and of the best empirical arms.

    Args:
        agent: a loaded run.
        tasks: M tasks.
        seed: of all pulls.

    Returns:
        (STEPS + 1, M) on fresh pulls, and (STEPS + 1, M) of the arm that paid best in all pulls before: its true
        probability, which is what pulling it earns. Before the first pull that is any arm.
    """
    from metarl.core.params import detach, expand
    from metarl.envs.bandit.players import Record, best_empirical_arm

    learner, rows = agent.learner, np.arange(len(tasks))
    params, scores, best = expand(detach(agent.meta), len(tasks)), [], [tasks.values.mean(1)]
    counts, sums = np.zeros(tasks.values.shape, dtype=np.int64), np.zeros(tasks.values.shape)
    for step in range(STEPS + 1):
        rollouts, _ = learner.domain.rollout(params, tasks, (*seed, step))
        scores.append(rollouts.returns.mean(1).double().numpy())
        if step == STEPS:
            break
        arms, paid = rollouts.actions[:, 0, :, 0].numpy(), rollouts.rewards[:, 0].double().numpy()
        np.add.at(counts, (rows[:, None], arms), 1)
        np.add.at(sums, (rows[:, None], arms), paid)
        time = int(counts[0].sum())
        best.append(tasks.values[rows, best_empirical_arm(Record(counts, sums, time, time))])
        params = learner.adapt(params, learner.domain.judge(rollouts), step)
    return np.stack(scores), np.stack(best)


def _closed(values: np.ndarray, unadapted: np.ndarray, oracle: np.ndarray) -> list[dict[str, Any]]:
    """(values - unadapted) / (oracle - unadapted) at every point of (seeds, points, M), with intervals over tasks."""
    start, closed = unadapted.mean(0), []
    for k in range(values.shape[1]):
        mean = values[:, k].mean(0)
        interval = recording.bootstrap(
            lambda rows, m=mean: recording.gap(m[rows], start[rows], oracle[rows]), len(oracle)
        )
        each = [recording.gap(seed[k], first, oracle) for seed, first in zip(values, unadapted, strict=True)]
        closed.append({"mean": recording.gap(mean, start, oracle), "ci95": interval, "each_seed": each})
    return closed


def _without(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the settings that others do not set again."""
    keys = {word.partition("=")[0] for word in others}
    return [word for word in words if word.partition("=")[0] not in keys]


def trial(count: int, maml: Sequence[pathlib.Path] = (), rl2: Sequence[pathlib.Path] = ()) -> dict[str, Any]:
    """Let everybody play a trial in each of ``count`` test tasks; return totals with intervals over tasks.

    Args:
        count: test tasks.
        maml: seeds of MAML, whose totals are averaged.
        rl2: seeds of RL², likewise.
    """
    from metarl import families
    from metarl.analysis.curves import interval
    from metarl.envs.bandit.players import PLAYERS, play
    from metarl.learner import TEST

    family = families.make(ENV, protocol="trial")
    pulls, tasks = family.spec.horizon, family.sample_tasks(count, "test", (0, TEST))
    known = {"random": pulls / 2, "oracle": pulls * family.arms / (family.arms + 1)}
    here = {"random": pulls * float(tasks.values.mean()), "oracle": pulls * float(tasks.values.max(1).mean())}
    totals = {name: play(family, tasks, player, pulls, seed=0).sums.sum(1)[None] for name, player in PLAYERS.items()}
    chosen: dict[str, Any] = {}
    if maml:
        size, rate = chosen["maml"] = maml_choice(maml[0], pulls, min(count, 500))
        totals["maml"] = np.stack([maml_totals(run, tasks, pulls, size, rate, (0, TEST, 1)) for run in maml])
    if rl2:
        totals["rl2"] = np.stack([rl2_totals(run, tasks, (0, TEST, 1)) for run in rl2])
    best, players = totals["gittins"][0], {}
    for name, each in totals.items():
        mean, part = each.mean(0), float(each.mean() / best.mean())
        # of a ratio of means over the same tasks, to first order
        spread = (part + interval(mean - part * best) / best.mean()).tolist()
        players[name] = {
            "mean": float(mean.mean()),
            "ci95": interval(mean).tolist(),
            "each_seed": each.mean(1).tolist(),
            "known": known.get(name),
            "known_of_these_tasks": here.get(name),
            "of_gittins": {"mean": part, "ci95": spread},
        }
    return {"tasks": count, "pulls": pulls, "arms": family.arms, "players": players, "chosen": chosen}


def rl2_totals(run: pathlib.Path, tasks: Any, seed: tuple[int, ...]) -> np.ndarray:
    """Let RL² play one trial in every task; return what it earned, (M,)."""
    from metarl.analysis.agent import load
    from metarl.analysis.curves import trial_curve, with_episodes

    agent, totals = load(run), []
    learner = with_episodes(agent.learner, 1)
    for start in range(0, len(tasks), 500):  # every task has a copy of the parameters
        rows = tasks.rows(slice(start, start + 500))
        totals.append(trial_curve(learner, agent.meta, rows, (*seed, start)).values[0])
    return np.concatenate(totals)


def maml_totals(run: pathlib.Path, tasks: Any, pulls: int, size: int, rate: float, seed: tuple[int, ...]) -> np.ndarray:
    """Let MAML play one trial in every task, with an update after every ``size`` pulls; return what it earned, (M,)."""
    from metarl.analysis.agent import load
    from metarl.analysis.curves import adapt, with_episodes, with_rates

    agent = load(run)
    updates = with_rates(with_episodes(agent.learner, size), pulls // size, (rate,))
    _, scores = adapt(updates, agent.meta, tasks, seed)
    return size * np.sum([score.values for score in scores], axis=0)


def maml_choice(run: pathlib.Path, pulls: int, count: int) -> tuple[int, float]:
    """Return the pulls between two updates and the step size with which MAML earns most in so many validation tasks."""
    from metarl import families
    from metarl.learner import VALIDATION

    tasks = families.make(ENV).sample_tasks(count, "validation", (0, VALIDATION))

    def earned(option: tuple[int, float]) -> float:
        size, rate = option
        return float(maml_totals(run, tasks, pulls, size, rate, (0, VALIDATION, 1)).mean())

    return max(((size, rate) for size in SIZES for rate in RATES), key=earned)


def draw(fitted: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw rewards against updates: MAML, the best empirical arm, and the oracle's level."""
    from metarl.analysis import plots

    updates = list(range(STEPS + 1))
    curves = {"maml, mean of seeds": fitted["maml"], "best empirical arm": fitted["best_empirical_arm"]}
    level = {"mean": [fitted["oracle"]["mean"]], "ci95": [fitted["oracle"]["ci95"]], "updates": [0]}
    result = {
        "family": ENV,
        "split": "test",
        "tasks": [{}] * fitted["tasks"],
        "metric": "reward",
        "unit": "per pull",
        "runs": {name: {**curve, "updates": updates} for name, curve in curves.items()} | {"oracle": level},
        "notes": {"oracle": {"adapted": False}},
    }
    plots.adaptation(result, path)


def report(summary: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    fitted, played = summary["fit"], summary["trial"]
    (oracle,) = recording.intervals({"mean": [fitted["oracle"]["mean"]], "ci95": [fitted["oracle"]["ci95"]]}, 3)
    lines = [
        f"Fit {fitted['pulls']} pulls, judge on as many fresh ones: reward per pull on {fitted['tasks']} test tasks, mean and 95 %"
        f" interval over tasks; the rates of adapting are training's. The oracle earns {oracle}. Closed: the part of the gap"
        " from unadapted to oracle. The best empirical arm has seen the same pulls, those of all updates so far.",
        "",
        "| updates | MAML | closed | closed by each seed | best empirical arm | closed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    sides = []
    for name in ("maml", "best_empirical_arm"):
        closed = fitted[name]["closed"]
        parts = recording.intervals({key: [point[key] for point in closed] for key in ("mean", "ci95")}, 3)
        sides.append((recording.intervals(fitted[name], 3), parts))
    (maml, closed), (arm, closed_by_arm) = sides
    for k in range(1, STEPS + 1):
        each = ", ".join(f"{value:.3f}" for value in fitted["maml"]["closed"][k]["each_seed"])
        lines.append(f"| {k} | {maml[k]} | {closed[k]} | {each} | {arm[k]} | {closed_by_arm[k]} |")
    lines += [
        "",
        f"Unadapted, MAML earns {maml[0]}.",
        "",
        f"One trial of {played['pulls']} pulls, {played['arms']} arms, in which every pull counts: total reward on"
        f" {played['tasks']} test tasks, mean and 95 % interval over tasks. In closed form: N/2 and N K/(K+1), the mean over all"
        " tasks; and the same of the probabilities of these very tasks. RL² (rl2) plays by what it remembers.",
        "",
        "| player | total | part of Gittins' | in closed form | of these tasks |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, player in played["players"].items():
        (total,) = recording.intervals({"mean": [player["mean"]], "ci95": [player["ci95"]]}, 2)
        (part,) = recording.intervals({key: [player["of_gittins"][key]] for key in ("mean", "ci95")}, 3)
        exact = [player["known"], player["known_of_these_tasks"]]
        shown = " | ".join("" if x is None else f"{x:.2f}" for x in exact)
        lines.append(f"| {name} | {total} | {part} | {shown} |")
    if "maml" in played["chosen"]:
        size, rate = played["chosen"]["maml"]
        lines += [
            "",
            f"MAML updates after every {size} pulls with step size {rate:g}, the best of those tried on validation tasks.",
        ]
    return "\n".join([*lines, *recording.origin(summary)])


if __name__ == "__main__":
    sys.exit(main())
