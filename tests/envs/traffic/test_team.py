"""Intersections as a team: one policy for all of them, on any grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import metarl
from metarl.core.params import expand
from metarl.envs.traffic import arrivals
from metarl.envs.traffic.task import TrafficTask, concerning
from metarl.families import Tasks
from metarl.nets import Shared
from metarl.settings import SettingsError

TINY = {"meta_batch_size": 2, "episodes_per_task": 2, "threads": 1, "hidden_sizes": (8,)}
GRIDS = ((2, 2), (3, 3), (4, 4), (1, 6))


def _learner(rows, columns, env="traffic-grid", horizon=2, oracle=False, **settings):
    sizes = {"rows": rows, "columns": columns, "horizon": horizon, "warmup": 0, "oracle": oracle}
    return metarl.build(env, env_settings=sizes, **(TINY | settings))


@pytest.mark.parametrize("oracle", [False, True])
def test_the_same_parameters_act_on_any_grid(oracle):
    """A parameter whose shape has the grid's size in it; and where the grid is not a square, rows that are columns."""
    known = [_learner(rows, columns, oracle=oracle, normalize_observations=True) for rows, columns in GRIDS]
    state = known[0].init(seed=0)
    for learner, (rows, columns) in zip(known, GRIDS, strict=True):
        fresh = learner.init(seed=0)
        assert {n: v.shape for n, v in fresh.meta.items()} == {n: v.shape for n, v in state.meta.items()}
        assert {n: v.shape for n, v in fresh.statistics.items()} == {n: v.shape for n, v in state.statistics.items()}
        domain = learner.domain.given(state.statistics)
        tasks = domain.sample_tasks(1, "test", (0,))
        rollouts, _ = domain.rollout(expand(state.meta, 1), tasks, (0,))
        assert rollouts.actions.shape == (1, 2, 2, rows * columns)
        assert torch.isfinite(domain.judge(rollouts).advantages).all()


def test_an_intersection_decides_alike_wherever_it_is():
    """All intersections of an empty grid see the same, so they draw from one distribution; centrally they would not."""
    for shared in (True, False):
        learner = _learner(2, 3, shared_policy=shared)
        policy, family = learner.domain.policy, learner.domain.family
        assert isinstance(policy.net, Shared) == shared
        seen = family.batch(1, 1).reset(family.sample_tasks(1, "test", 0), np.zeros(1, dtype=np.uint32))
        (log_probs,) = policy.distribution(expand(learner.init(seed=0).meta, 1), torch.tensor(seen)[None])
        rows = log_probs.view(6, 4)
        assert bool((rows == rows[:1]).all()) == shared


def test_what_concerns_an_intersection():
    """By hand, on one row of two: its own approaches, the entries of its row and column, and everything without a place."""
    names = ("demand", "left", "saturation", "lost_time")
    # demand: north 0 1, east 2, south 3 4, west 5; left 6-9; saturation: heading by heading, 10 11, 12 13, 14 15, 16 17; 18
    assert concerning(names, 1, 2) == (
        (0, 2, 3, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18),
        (1, 2, 4, 5, 6, 7, 8, 9, 11, 13, 15, 17, 18),
    )
    spec = metarl.make("traffic-grid", rows=2, columns=2).spec
    own = [spec.parameters[i].name for i in spec.agents.known[2]]  # row 1, column 0
    assert [n for n in own if n.startswith(("demand", "saturation_n", "detector_w"))] == [
        *("demand_north_0", "demand_east_1", "demand_south_0", "demand_west_1"),
        *("saturation_north_1_0", "detector_west_1_0"),
    ]


def test_an_oracles_intersection_sees_its_own_part_of_the_task():
    """A saturation flow of one approach changes the choices of the intersection that it leads to, and of no other."""
    learner = _learner(2, 2, "traffic-capacity", oracle=True)
    domain, params = learner.domain, expand(learner.init(seed=0).meta, 1)
    tasks = domain.sample_tasks(1, "test", (0,))
    blank = torch.zeros(1, 1, domain.family.spec.observation_size)
    values = tasks.values.copy()
    values[0, tasks.names.index("saturation_south_0_1")] = 1.0
    here, there = (domain.policy.net(params, domain.told(blank, t)) for t in (tasks, Tasks(tasks.names, values)))
    changed = (here != there).view(4, 4).any(1)
    assert changed.tolist() == [False, True, False, False]


def test_training_a_shared_policy_moves_it_and_nothing_else_can():
    """Sampling, baseline, adaptation, meta-gradient and trust region end to end; RL² too; and a setting without effect."""
    learner = _learner(1, 2, horizon=4)
    state = learner.init(seed=0)
    following, metrics = learner.iteration(state)
    assert all(np.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert any(not torch.equal(following.meta[n], state.meta[n]) for n in state.meta)
    recurrent = _learner(1, 2, algo="rl2")
    following, _ = recurrent.iteration(recurrent.init(seed=0))
    larger = dataclasses.replace(recurrent, domain=_learner(2, 2, algo="rl2").domain)
    larger.domain.rollout(expand(following.meta, 2), larger.domain.sample_tasks(2, "test", (0,)), (0,))
    with pytest.raises(SettingsError, match="shared_policy=false has no meaning for env=navigation-2d"):
        metarl.build("navigation-2d", shared_policy=False)


@pytest.mark.parametrize("env", ["traffic-grid", "traffic-demand"])
def test_the_heavy_band_is_the_same_tasks_with_more_demand(env):
    """A factor drawn before the rest would change everything; one within the limit on loads would be taken back."""
    usual, heavy = (metarl.make(env, band=band).sample_tasks(50, "test", 3) for band in ("usual", "heavy"))
    demand = [i for i, name in enumerate(usual.names) if name.startswith("demand")]
    others = [i for i in range(len(usual.names)) if i not in demand]
    assert np.array_equal(usual.values[:, others], heavy.values[:, others])
    ratio = heavy.values[:, demand] / usual.values[:, demand]
    assert np.allclose(ratio, ratio[:, :1])
    assert ratio.max() <= 1.4 + 1e-12
    peak = heavy.values[:, demand].max(1) * (1 + heavy["peak_height"])
    assert ((ratio[:, 0] >= 1.2 - 1e-12) | np.isclose(peak, 3600)).all()
    assert ratio[:, 0].std() > 0.03


@pytest.mark.parametrize("env", ["traffic-grid", "traffic-demand"])
def test_the_tidal_band_is_the_same_tasks_whose_demand_turns(env):
    """A tide that a policy could know from training, one that never turns, demand that is another on the whole."""
    families = [metarl.make(env, band=band, rows=1) for band in ("usual", "tidal")]
    usual, tidal = (family.sample_tasks(50, "test", 3) for family in families)
    assert families[0].spec == families[1].spec
    demand = [i for i, name in enumerate(usual.names) if name.startswith("demand")]
    ratio = tidal.values[:, demand] / usual.values[:, demand]
    peak = tidal.values[:, demand].max(1) * (1 + tidal["peak_height"])
    assert (np.isclose(ratio, 1).all(1) | np.isclose(peak, 3600 / 1.6)).all()
    env = families[1].batch(1, 1)
    env.reset(tidal.rows([4]), np.zeros(1, dtype=np.uint32))
    given = env.simulator.conditions
    seconds, towards = (
        torch.arange(1320.0).double(),
        (0, 0, 1, 0, 0, -1),
    )  # two columns northwards, a row eastwards, and on
    assert env.simulator.grid.eastwards == towards
    factors, plain = (arrivals.course(seconds, given.course, way)[:, :, 0] for way in (towards, [0] * 6))
    relative = (factors / plain).numpy()
    np.testing.assert_allclose(relative[[0, 660, 1319], 2], [1.6, 1.0, 0.4], atol=2e-3)
    np.testing.assert_allclose(relative.mean(0), 1.0, atol=1e-3)
    np.testing.assert_allclose(relative[:, 2] + relative[:, 5], 2.0, rtol=1e-12)
    with pytest.raises(SettingsError, match="exceeds 4320 veh/h in its peak"):
        TrafficTask(demand=(3000.0,), tide=0.5)


def test_other_rewards_by_hand():
    """One decision: seconds are added up as they are, by sums over loops; pressure has the sign of neither side."""
    tasks = metarl.make("traffic-demand").sample_tasks(2, "test", 0)
    for reward in ("queues", "pressure"):
        env = metarl.make("traffic-demand", reward=reward).batch(2, 1)
        env.reset(tasks, np.arange(2, dtype=np.uint32))
        sim, total, tick = env.simulator, np.zeros(2), env.simulator.tick

        def watched(sim=sim, total=total, tick=tick, reward=reward):
            tick()
            for b in range(2):
                on, n = sim.on_links[..., b], 0.0
                if reward == "queues":
                    n = float(sim.queues[..., b].sum() + sim.mixed[..., b].sum() + sim.origins[..., b].sum())
                for r, c in np.ndindex(2, 2) if reward == "pressure" else ():
                    into = sum(float(on[h, r, c]) for h in range(4))
                    onto = float(on[0, r - 1, c]) * (r == 1) + float(on[2, r - 1, c]) * (r == 0)
                    onto += float(on[1, r, c - 1]) * (c == 0) + float(on[3, r, c - 1]) * (c == 1)
                    n += abs(into - onto)
                total[b] += n

        sim.tick = watched
        step = env.step(sim.signals.phase.flatten(0, 1).T.numpy())
        np.testing.assert_allclose(step.rewards, -total / (100 * 4), rtol=1e-5)
        assert (step.rewards < 0).all()
