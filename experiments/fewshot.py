"""Few-shot learning on held-out classes: algorithms and references, by several protocols of normalisation.

    python -m experiments.fewshot                                  omniglot, 5 ways, 1 shot; trains (resumes what is there)
    python -m experiments.fewshot ways=20 only=[maml-adam]         other tasks, some of the trainings
    python -m experiments.fewshot iterations=20000 words=[env.queries=1,algo.lr=0.002]   other settings of the trainings
    python -m experiments.fewshot only=[maml-adam-support,maml-adam-group]   MAML trained with other normalisations
    python -m experiments.fewshot env=sinusoid                     regression, beside the paper's errors
    python -m experiments.fewshot train=false                      evaluates what is there
    python -m experiments.fewshot tiny=true                        a budget of seconds, elsewhere

Every run of an algorithm is a process of its own, and validates on validation classes; its best parameters there are evaluated. So
is the number of inner updates chosen at which test tasks are compared; results hold the accuracy after every one. Test tasks and
their examples are the same for all rows; rows that the result file has already, of runs that are no longer there, stay. Nothing is
tuned on test classes. The references (``transfer`` and ``prototypes``, trained in this process, and neighbours of pixels) are in
``experiments.fewshot_references``. Runs are kept under ``runs/fewshot/``, results under ``experiments/results/fewshot/``.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import algorithms, fewshot_report, recording
from metarl.run import arguments
from metarl.run.command import guarded
from metarl.run.config import algorithm_of
from metarl.settings import SettingsError, setting

TRAININGS = ("transfer", "prototypes")  # of the references
METHODS = ("maml-adam", "fomaml-adam", "reptile", "anil-adam", "meta-sgd-adam", "imaml-adam")
# MAML on networks that were trained with other normalisations; only where they are asked for by ``only=``
VARIANTS = {f"maml-adam-{kind}": kind for kind in ("support", "task", "group", "none")}
TINY = {
    "iterations": "4",
    "meta_batch_size": "2",
    "filters": "8",
    "eval_every": "2",
    "eval_tasks": "2",
    "env.queries": "2",
}
HELD = 200  # validation tasks that choose the number of updates
EPISODE_WAYS = {"omniglot": 60, "glyphs": 20}  # classes of a prototypical episode, more than a test task has
SHARED = ("env", "ways", "shots", "queries", "tasks", "alone")  # what rows of one table have in common
# what is inserted into the README; other tasks only have their files
RECORDED = ("omniglot-5w1s", "omniglot-5w5s", "omniglot-20w1s", "omniglot-20w5s", "glyphs-5w1s")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this experiment can be told."""

    env: str = setting("omniglot", "the family", choices=("omniglot", "glyphs", "sinusoid"))
    ways: int = setting(5, "classes of a task", low=2)
    shots: int = setting(1, "support images of a class", low=1)
    queries: int = setting(0, "query images of a class of a test task; 0: 15, of glyphs 10", low=0)
    only: tuple[str, ...] = setting((), "train these alone; empty: all (of images)")
    seeds: int = setting(0, "of each algorithm; 0: 1, of sinusoid 3", low=0)
    iterations: int = setting(0, "meta-updates of an algorithm's run; 0: 6000, of sinusoid 70000", low=0)
    reference_iterations: int = setting(6000, "steps of a reference's training", low=1)
    words: tuple[str, ...] = setting((), "more settings of every training, such as env.queries=1")
    tasks: int = setting(600, "test tasks", low=2)
    alone: int = setting(200, "of them also judged query by query, which takes long; 0: none", low=0)
    steps: int = setting(10, "most inner updates; of Reptile twice, of iMAML a third as many", low=1)
    tiny: bool = setting(False, "a budget of seconds, under runs/tiny, to see that everything works")
    train: bool = setting(True, "false evaluates what is there")
    evaluate: bool = setting(True, "false only trains")

    @property
    def label(self) -> str:
        """Name of the tasks."""
        return f"{self.env}-{self.ways}w{self.shots}s"


def main() -> int:
    """Train, evaluate, write."""
    return guarded(lambda: _main(Settings(**arguments.parse(sys.argv[1:], Settings))))


def _main(settings: Settings) -> int:
    if settings.env == "sinusoid":
        return _sinusoids(settings)
    settings = completed(settings)
    chosen = _chosen(settings.only)
    runs, results = recording.folders("fewshot", settings.tiny)
    runs = runs / settings.label
    file = results / f"{settings.label}.json"
    before = earlier(file, settings) if settings.evaluate else {}
    labels = {name: [f"{name}-s{seed}" for seed in range(settings.seeds)] for name in (*METHODS, *VARIANTS)}
    if settings.train:
        for name in [name for name in labels if name in chosen]:
            for seed, label in enumerate(labels[name]):
                algorithms.train(runs / label, [*plan(settings, name), f"seed={seed}"])
    from experiments import fewshot_references

    domain = _domain(settings)
    networks = _networks(domain, runs, settings, chosen)
    if not settings.evaluate:
        return 0
    rows: dict[str, Any] = {}
    for name, each in labels.items():
        finished = [runs / label for label in each if (runs / label / algorithms.PEAK).exists()]
        rows |= {name: _row(finished, settings, domain.workers)} if finished else {}
    if not rows and not any(networks.values()):
        raise SettingsError(f"no run under {runs} has come to its end; leave train=false out")
    tasks = fewshot_references.Tasks(domain, settings.tasks, 4 if settings.tiny else HELD)
    rows |= fewshot_references.neighbours(tasks) | fewshot_references.rows(tasks, networks)
    from metarl.run.provenance import provenance

    command, origin = " ".join(["python -m experiments.fewshot", *sys.argv[1:]]), provenance()
    judged = {"command": command, **_where(origin)}
    result = {
        **{key: getattr(settings, key) for key in SHARED},
        "rows": joined({name: {**row, "judged": judged} for name, row in rows.items()}, before),
        "command": command,
        "provenance": origin,
    }
    recording.write(file, algorithms.null_for_nan(result))
    text = fewshot_report.report(result)
    print(text)
    fewshot_report.draw(result, results / f"{settings.label}.png")
    shown = {settings.label: "accuracy by inner updates"}
    method = next((name for name in METHODS if name in rows), None)
    if method is not None:
        _draw_tasks(runs / labels[method][0], settings, rows[method]["updates"], results)
        shown[f"{settings.label}-tasks"] = "two test tasks, before and after adapting"
    if not settings.tiny and settings.label in RECORDED:
        where = results.relative_to(recording.README.parent)
        pictures = "\n\n".join(f"![{caption}]({where}/{name}.png)" for name, caption in shown.items())
        recording.insert(recording.README, mark(settings.label), f"{pictures}\n\n{text}")
    return 0


def earlier(file: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Return the table that a file has already, of rows (name to row) that say where they were judged; empty where there is none.

    Raises:
        SettingsError: if its test tasks are others: their rows would be lost.
    """
    if not file.exists():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    other = [key for key in SHARED if found[key] != getattr(settings, key)]
    if other:
        raise SettingsError(
            f"{file} has rows of other test tasks ({', '.join(f'{key}={found[key]}' for key in other)}): give the same, or move"
            " the file away"
        )
    judged = {"command": found["command"], **_where(found["provenance"])}
    return {name: {"judged": judged, **row} for name, row in found["rows"].items()}


def joined(rows: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return rows, and of an earlier table those that were not judged now, in one order."""
    if kept.keys() - rows.keys():
        print(f"kept from the earlier table: {', '.join(name for name in kept if name not in rows)}")
    found = {**kept, **rows}
    names = [name for name in (*METHODS, *VARIANTS) if name in found]
    return {name: found[name] for name in [*names, *(name for name in found if name not in names)]}


def _where(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a provenance what a table says of its rows."""
    return {key: origin[key] for key in ("commit", "cpu", "cores", "versions") if key in origin}


def _draw_tasks(run: pathlib.Path, settings: Settings, updates: int, results: pathlib.Path) -> None:
    """Draw the first two test tasks, with what a run answers before and after adapting."""
    from experiments import fewshot_pictures
    from metarl.analysis.agent import load
    from metarl.analysis.shots import with_shape
    from metarl.learner import TEST

    agent = load(run, "best")
    shape = {"ways": settings.ways, "shots": settings.shots, "queries": settings.queries}
    learner = with_shape(agent.learner, agent.config.env, {**agent.config.env_settings, **shape})
    tasks = learner.domain.sample_tasks(2, "test", (0, TEST))
    found = fewshot_pictures.answers(learner, agent.meta, tasks, (0, TEST, 1), updates)
    title = f"{agent.config.algo}, {learner.domain.protocol}, {updates} updates"
    fewshot_pictures.draw_episodes(found, title, results / f"{settings.label}-tasks.png")


def completed(settings: Settings) -> Settings:
    """Return the settings with what the family and ``tiny`` say in place of what the user did not."""
    sinusoid = settings.env == "sinusoid"
    settings = dataclasses.replace(
        settings,
        # there are some 16 fonts to a glyph, and Reptile trains on ten shots
        queries=settings.queries or (10 if settings.env == "glyphs" else 15),
        seeds=settings.seeds or (3 if sinusoid else 1),
        iterations=settings.iterations or (70000 if sinusoid else 6000),
    )
    if not settings.tiny:
        return settings
    return dataclasses.replace(settings, tasks=4, alone=2, queries=3, steps=3, reference_iterations=4)


def _sinusoids(settings: Settings) -> int:
    """Regression has no classes, and references of its own."""
    from experiments import sinusoids

    usual = Settings()
    for name in ("ways", "shots", "queries", "only", "alone", "steps", "reference_iterations"):
        if getattr(settings, name) != getattr(usual, name):
            raise SettingsError(
                f"{name}= has no effect with env=sinusoid, which has 5 and 10 shots and references of its own"
            )
    settings = completed(settings)
    held = 4 if settings.tiny else HELD
    numbers = (settings.iterations, settings.seeds, settings.tasks, held)
    scale = sinusoids.Scale(*numbers, settings.words, settings.tiny)
    return sinusoids.run(scale, settings.train, settings.evaluate)


def _chosen(only: Sequence[str]) -> list[str]:
    """Return what is to be trained."""
    known = (*METHODS, *VARIANTS, *TRAININGS)
    names = [name if name in known else algorithm_of("omniglot", name) for name in only]
    for name in names:
        if name not in known:
            raise SettingsError(f"only=[{name}] is none of this experiment's: {', '.join(known)}")
    return names or [*METHODS, *TRAININGS]


def _domain(settings: Settings) -> Any:
    """Return the domain of the test tasks, with the network of the trainings before any."""
    import metarl
    from metarl.analysis.shots import shot_domain

    words = arguments.read(plan(settings, "maml-adam"))
    shape = {"ways": settings.ways, "shots": settings.shots, "queries": settings.queries}
    env = {**words.env_settings, **shape}
    learner = metarl.build(
        words.env, "maml-adam", env_settings=env, algo_settings=words.algo_settings, **words.settings
    )
    return shot_domain(learner)


def _networks(domain: Any, runs: pathlib.Path, settings: Settings, chosen: Sequence[str]) -> dict[str, list[Any]]:
    """Return the networks of the references; those that are not chosen are not trained, but taken where they are there."""
    import torch

    from experiments.fewshot_networks import Plan, trained
    from metarl.nets import Conv4

    if not isinstance(domain.net, Conv4):
        print("The references have convolutional networks; this one is another, and they are left out.")
        return {}
    before, found = torch.get_num_threads(), {}
    torch.set_num_threads(domain.workers.threads)  # a training is one batch after the other
    try:
        for kind in TRAININGS:
            ways, some = max(settings.ways, EPISODE_WAYS[settings.env]), (2, 4) if settings.tiny else (40, 100)
            plans = [Plan(kind, settings.reference_iterations, seed, ways, *some) for seed in range(settings.seeds)]
            train = settings.train and kind in chosen
            each = [trained(runs / f"{kind}-s{plan.seed}", plan, domain, train) for plan in plans]
            found[kind] = [network for network in each if network is not None]
    finally:
        torch.set_num_threads(before)
    return found


def mark(label: str) -> str:
    """Return what stands before and behind a table in the README."""
    return f"<!-- fewshot {label} -->"


def plan(settings: Settings, name: str) -> list[str]:
    """Return the settings of a training, later ones before earlier ones: the family's, the method's, the user's."""
    words = {
        "env": settings.env,
        "algo": "maml-adam" if name in VARIANTS else name,
        "env.ways": str(settings.ways),
        "env.shots": str(settings.shots),
        # as many as the outer loss needs to be smooth; each costs as much as a support image
        "env.queries": "5" if settings.ways <= 5 else "2",
        "meta_batch_size": "16",
        "inner_lr": "0.4",
        "inner_steps": "1" if settings.ways <= 5 else "5",
        "iterations": str(settings.iterations),
        "eval_every": str(max(1, settings.iterations // 40)),
        "eval_tasks": "100",
        "eval_steps": "3" if settings.ways <= 5 else "5",
        "checkpoint_every": "100",
    }
    if name == "reptile":
        # more shots than a test task has, as its authors do: an epoch of a task is all that it learns from
        words |= {"env.shots": "10", "env.queries": "1", "meta_batch_size": "5", "inner_steps": "5", "inner_lr": "0.1"}
        words |= {"eval_steps": "5"}
    else:
        words |= {"algo.final_lr": "1e-5"}
    if name in ("meta-sgd-adam", "imaml-adam"):
        words |= {"inner_steps": "1", "eval_steps": "1"}
    words |= {"normalization": VARIANTS[name]} if name in VARIANTS else {}
    words |= TINY if settings.tiny else {}
    words |= dict(_pair(word) for word in settings.words)
    words = {"algo.decay_steps": words["iterations"]} | words  # the meta step size falls to the end
    return [f"{key}={value}" for key, value in words.items()]


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise SettingsError(f"words=[{word}] is no key=value; name settings of metarl.train such as env.queries=1")
    return key, value


def _steps(settings: Settings, name: str) -> int:
    """Most inner updates: Reptile takes many small ones, and an update of iMAML is a whole solution."""
    return {"reptile": 2 * settings.steps, "imaml-adam": max(1, settings.steps // 3)}.get(name, settings.steps)


def _row(runs: Sequence[pathlib.Path], settings: Settings, workers: Any) -> dict[str, Any]:
    """Evaluate the seeds of one algorithm on the same test tasks, each by its best parameters on validation classes.

    However few threads a run was trained with, it is evaluated with all of ``workers``.
    """
    from metarl.analysis.agent import load
    from metarl.analysis.shots import shot_domain, with_shape
    from metarl.fewshot.protocol import ONE_BY_ONE, protocols

    agents = [load(run, "best") for run in runs]
    shape = {"ways": settings.ways, "shots": settings.shots, "queries": settings.queries}
    config, known = agents[0].config, [recording.facts(run) for run in runs]
    trained = [
        (with_shape(a.learner, a.config.env, {**a.config.env_settings, **shape}, workers), a.meta) for a in agents
    ]
    nets = protocols(shot_domain(trained[0][0]).net)
    own, slow = next(iter(nets)), {name: nets.pop(name) for name in [ONE_BY_ONE] if name in nets}
    points = range(_steps(settings, config.algo) + 1)
    count = 4 if settings.tiny else HELD
    held = _judged(trained, count, "validation", points, {own: nets[own]})[own]["mean"]
    best = best_updates(held)
    found = _judged(trained, settings.tasks, "test", points, nets)
    if settings.alone and slow:
        found |= _judged(trained, min(settings.alone, settings.tasks), "test", [best], slow)
    return {
        "trained": own,
        "updates": best,
        "validation": held,
        "protocols": found,
        "iterations": [fact["iterations"] for fact in known],
        "selected": [agent.iteration for agent in agents],
        "minutes": [60 * fact["hours"] for fact in known],
        "commands": [fact["command"] for fact in known],
        "commits": sorted({commit for fact in known for commit in fact["commits"]}),
    }


def best_updates(held: Sequence[float]) -> int:
    """Return the number of updates with the greatest mean; scores that are no numbers, of diverged tasks, are the least.

    None at all are no answer: unadapted parameters know nothing of the order of a task's classes.
    """
    return 1 + int(np.nan_to_num(np.array(held[1:]), nan=-1.0).argmax())


def _judged(
    trained: Sequence[tuple[Any, Any]], count: int, split: Any, points: Sequence[int], nets: Mapping[str, Any]
) -> dict[str, Any]:
    """Adapt every seed to tasks of a split, the same for all; return the mean curve of each network."""
    from metarl.analysis.shots import shot_curves
    from metarl.learner import TEST, VALIDATION

    stream = (0, TEST if split == "test" else VALIDATION)
    each = []
    for learner, meta in trained:
        tasks = learner.domain.sample_tasks(count, split, stream)
        each.append(shot_curves(learner, meta, tasks, (*stream, 1), points, nets))
    curves = {name: np.stack([found[name].values for found in each]) for name in nets}
    return {name: {"updates": list(points), **recording.mean_of_seeds(values)} for name, values in curves.items()}


if __name__ == "__main__":
    sys.exit(main())
