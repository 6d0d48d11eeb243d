"""A run that learns by memory, evaluated and loaded."""

from __future__ import annotations

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
import torch

import metarl
from metarl import evaluate, references, report, train
from metarl.analysis.curves import trial_curve
from metarl.core import SGD, Unchanged
from metarl.core.params import expand
from metarl.families import RLSpec, Step, TaskParameter, Tasks, split_uniform
from metarl.nets import GRU
from metarl.rl import GaussianPolicy, RLDomain, Trial
from metarl.run.trainer import validate
from metarl.settings import SettingsError

SMALL = ("env=navigation-2d", "env.horizon=6", "meta_batch_size=2", "episodes_per_task=2", "iterations=1", "threads=1")
OWN = ("algo=rl2", "algo.memory_size=5", "algo.trial_episodes=3", "eval_every=1", "eval_tasks=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run by memory, one of an oracle by memory, one of MAML."""
    parent, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    more = {"rl2": OWN, "oracle": (*OWN, "env.oracle=true", "normalize_observations=true"), "maml": ("eval_every=0",)}
    for name, words in more.items():
        assert train.main([*SMALL, *words, f"run_dir={parent / name}"]) == 0
    yield {name: parent / name for name in more}
    torch.set_num_threads(threads)


def _rows(path):
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_one_command_makes_its_report_and_names_references_that_can_be_made(runs, tmp_path, capsys):
    """Updates and step sizes, which it has none of: an error after the evaluation, or a command that is refused."""
    page = tmp_path / "r.html"
    for others in ([], [str(runs["maml"])]):
        assert report.main([str(runs["rl2"]), *others, "make=true", "tasks=2", f"to={page}", "film=false"]) == 0
        (told,) = (line for line in capsys.readouterr().out.splitlines() if "makes them: " in line)
        words = told.split("makes them: python -m metarl.references ")[1].split()
        assert references.checked(words).methods
    assert page.exists()


def test_validation_tells_the_first_and_the_last_episode_and_judges_by_all(runs):
    """Catches a best checkpoint that is best at the first episode, of which nothing can be learned."""
    (row,) = _rows(runs["rl2"])
    agent = metarl.load(runs["rl2"])
    state = agent.learner.init(0)
    again = validate(agent.learner, metarl.MetaState(agent.meta, state.outer, 1, 0, 0), 2, 0)
    assert {name for name in again if "return" in name} == {
        "validation_return_0",
        "validation_return_2",
        "validation_trial_return",
    }
    assert all(row[name] == value for name, value in again.items() if "return" in name)
    sample = agent.learner.domain.collect(
        expand(agent.meta, 2), agent.learner.domain.sample_tasks(2, "validation", (0, 1)), (0, 1, 0), "query"
    )
    assert row["validation_trial_return"] == pytest.approx(float(sample.scores.mean()))
    assert (runs["rl2"] / "checkpoints" / "best").exists() or metarl.load(runs["rl2"], "best").iteration == 1


def test_the_curve_is_of_episodes(runs, evaluated):
    """Every episode of the trial; k of them are the first k + 1 of a longer trial."""
    curve = evaluated(runs["rl2"], "tasks=3")["runs"]["rl2"]
    assert (curve["rollouts"], curve["updates"]) == ([0, 1, 2], [0, 0, 0])
    longer = evaluated(runs["rl2"], "tasks=3", "rollouts=[0,2,4]")["runs"]["rl2"]
    assert longer["rollouts"] == [0, 2, 4]
    assert longer["values"][:2] == [curve["values"][0], curve["values"][2]]
    agent = metarl.load(runs["rl2"])
    tasks = agent.learner.domain.sample_tasks(3, "test", (0, 2))
    np.testing.assert_array_equal(trial_curve(agent.learner, agent.meta, tasks, (0, 2, 1)).values, curve["values"])


def test_beside_a_run_with_updates_the_axis_is_rollouts(runs, evaluated):
    """The one axis they share, whichever of them is evaluated; and MAML's step sizes can be chosen beside RL²."""
    result = evaluated(runs["rl2"], f"compare=[{runs['maml']},{runs['oracle']}]", "tasks=2", "inner_lr=0.05")
    assert {name: run["rollouts"] for name, run in result["runs"].items()} == {
        "rl2": [0, 1, 2],
        "maml": [0, 2, 4, 6],
        "oracle": [0, 1, 2],
    }
    assert result["notes"]["maml"]["inner_lr"] == [0.05]
    assert "inner_lr" not in result["notes"]["rl2"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("tune=true",), "tune= has no effect here: a run of algo=rl2 learns by memory"),
        (("inner_lr=0.1",), "inner_lr= has no effect here: a run of algo=rl2 learns by memory"),
        (("steps=2",), "steps= has no effect here: a run of algo=rl2 learns by memory"),
        (("video=true",), "video=true shows one run before and after inner updates; a run of algo=rl2 has none"),
    ],
)
def test_what_belongs_to_updates_is_refused(runs, capsys, words, reason):
    assert evaluate.main([f"run={runs['rl2']}", *words]) == 2
    assert reason in capsys.readouterr().err


def test_adapting_is_remembering_the_episodes_of_one_trial(runs):
    """In the family and in an environment of one's own the same, which is what one simulation of a trial gives."""
    agent, task = metarl.load(runs["rl2"]), {"x": 0.3, "y": -0.2}
    names = agent.learner.domain.family.spec.parameters
    task = dict(zip([p.name for p in names], task.values(), strict=True))
    env = gymnasium.make("metarl/navigation-2d-v0", task=task, horizon=6, disable_env_checker=True)
    (_, curve), (_, own) = (agent.adapt(where, rollouts=3, seed=1) for where in (task, env))
    assert (curve.rollouts, curve.updates, curve.values.shape) == ((0, 1, 2), (0, 0, 0), (3, 1))
    np.testing.assert_array_equal(curve.values, own.values)
    with pytest.raises(SettingsError, match="inner_lr has no meaning for algo=rl2"):
        agent.adapt(task, inner_lr=0.1)


@pytest.mark.parametrize("run", ["rl2", "oracle"])
def test_the_policy_that_is_told_what_it_gets_acts_as_in_a_trial(runs, run):
    """Two episodes by hand, against the network that reads the same trial: catches inputs in another order, a reward or a
    beginning of another step, a normalisation or a context that is left out.
    """
    agent = metarl.load(runs[run])
    domain, g = agent.learner.domain, np.random.default_rng(0)
    tasks = domain.sample_tasks(1, "test", (0,))
    policy, _ = agent.adapt(tasks, rollouts=1, seed=0)
    fresh = type(policy)(domain, expand(agent.meta, 1), policy._context)
    simulation = domain.family.batch(1, 1)
    seen, rows, acted = simulation.reset(tasks, np.array([5], np.uint32)), [], []
    for t in range(12):
        told = domain.observe(torch.tensor(seen).unsqueeze(0), tasks)
        rows.append(told[0, 0])
        base = seen[0, -domain.family.family.spec.observation_size :]
        action = fresh.act(base)
        acted.append(action)
        played = (action + g.normal(0, 0.01, 2)).astype(np.float32) if t == 3 else action
        fresh._last = played  # what was played is what is remembered
        step = simulation.step(played[None])
        fresh.saw(float(step.rewards[0]), bool(step.observations[0, 3]))
        seen = step.observations
    padded = torch.cat([torch.stack(rows), torch.zeros(6, len(rows[0]))]).unsqueeze(0)
    (mean, *_), spec = domain.policy.distribution(expand(agent.meta, 1), padded), domain.family.spec
    expected = mean[0, :12].detach().numpy().clip(spec.action_low, spec.action_high)
    np.testing.assert_allclose(np.stack(acted), expected, rtol=1e-4, atol=1e-5)


def test_a_reward_that_nobody_told_is_asked_for(runs):
    """Else the memory would hold rewards of 0 that were never paid."""
    policy, _ = metarl.load(runs["rl2"]).adapt(
        metarl.load(runs["rl2"]).learner.domain.sample_tasks(1, "test", (0,)), rollouts=1
    )
    with pytest.raises(ValueError, match="no action since the last reward"):
        policy.saw(1.0)
    policy.act(np.zeros(2))
    with pytest.raises(ValueError, match=r"policy\.saw\(reward, ended\)"):
        policy.act(np.zeros(2))
    with pytest.raises(ValueError, match=r"an observation has shape \(2,\); got \(3,\)"):
        policy.act(np.zeros(3))


@dataclasses.dataclass(frozen=True)
class Judged:
    """Each step pays the task's bonus; every episode whose seed is even is a success at its second and last step."""

    recommended = {}  # noqa: RUF012
    spec = RLSpec((TaskParameter("bonus", 0, 1, ""),), 1, 1, -1.0, 1.0, 2, 0.0)

    def sample_tasks(self, num_tasks, split, seed):
        return Tasks(("bonus",), split_uniform(num_tasks, split, seed, dimensions=1))

    def batch(self, num_envs, threads):
        return JudgedBatch()


class JudgedBatch:
    """Judged as arrays."""

    def reset(self, tasks, seeds):
        self.bonus, self.even, self.time = tasks["bonus"].astype(np.float32), seeds % 2 == 0, 0
        return np.zeros((len(tasks), 1), np.float32)

    def step(self, actions):
        self.time += 1
        flags = np.zeros(len(actions), dtype=bool)
        return Step(np.zeros((len(actions), 1), np.float32), self.bonus.copy(), flags, flags)

    def success(self):
        return self.even & (self.time == 2)


def test_every_point_of_a_curve_is_judged_by_its_own_episode():
    """Catches successes of earlier episodes that count for later ones: about half of all episodes succeed, not more."""
    trial = Trial(Judged(), 3)
    policy = GaussianPolicy(GRU(trial.spec.observation_size, 3, (1,), 6), 1)
    learner = metarl.MetaLearner(RLDomain(trial, policy, episodes=200), Unchanged(), SGD(), 0)
    meta, tasks = learner.init(0).meta, trial.sample_tasks(4, "test", 0)
    curve = trial_curve(learner, meta, tasks, (0, 2, 1))
    np.testing.assert_allclose(curve.values, np.tile(2 * tasks["bonus"], (3, 1)), rtol=1e-6)
    assert curve.success.mean(1) == pytest.approx([0.5] * 3, abs=5 * 0.5 / np.sqrt(800))
    assert len({tuple(row) for row in curve.success.tolist()}) == 3
    again = trial_curve(learner, meta, tasks, (0, 2, 1), [1])
    np.testing.assert_array_equal(again.success[0], curve.success[1])
    _, metrics = learner.iteration(learner.init(0))
    assert "pre_success" not in metrics
    assert 0 < metrics["post_success"] < 1
