"""Bandits and their reference players against closed forms and published tables."""

from __future__ import annotations

import numpy as np
import pytest

import metarl
from metarl import families
from metarl.envs.bandit.gittins import indices
from metarl.envs.bandit.players import PLAYERS, UCB1, Gittins, Record, Thompson, best_empirical_arm, play
from metarl.families import Tasks
from metarl.testing import check_family


def _pulled(family, task, arm, episodes=20000):
    tasks = Tasks.from_json([task]).repeat(episodes)
    env = family.batch(episodes, 1)
    env.reset(tasks, np.arange(episodes, dtype=np.uint32))
    return env, env.step(np.full((episodes, 1), arm))


def test_bernoulli_arms_pay_their_probability():
    """An arm of another column or of another row, or a probability that is off."""
    family = families.make("bandit-bernoulli", arms=3, horizon=2)
    for arm, p in enumerate((0.1, 0.5, 0.97)):
        env, step = _pulled(family, {"p0": 0.1, "p1": 0.5, "p2": 0.97}, arm)
        assert set(step.rewards.tolist()) == {0.0, 1.0}
        error = 5 * np.sqrt(p * (1 - p) / 20000)
        assert abs(step.rewards.mean() - p) < error
        assert not step.terminated.any()
        second = env.step(np.full((20000, 1), arm))
        assert second.terminated.all()
        assert not second.truncated.any()
        both = (step.rewards * second.rewards).mean()
        assert abs(both - p * p) < 5 * np.sqrt(p * p * (1 - p * p) / 20000), "pulls of an episode are independent"


def test_each_bandit_pays_by_its_own_task():
    family = families.make("bandit-bernoulli", arms=2)
    tasks = Tasks(("p0", "p1"), np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    for actions, paid in (([0, 0, 0], [0, 1, 1]), ([1, 1, 0], [1, 0, 1])):
        env = family.batch(3, 1)
        env.reset(tasks, np.arange(3, dtype=np.uint32))
        assert env.step(np.array(actions)[:, None]).rewards.tolist() == paid


def test_gaussian_arms_pay_around_their_mean():
    family = families.make("bandit-gaussian", arms=2, std=0.5)
    for arm, mean in enumerate((0.2, 0.9)):
        rewards = _pulled(family, {"mean0": 0.2, "mean1": 0.9}, arm)[1].rewards
        assert abs(rewards.mean() - mean) < 5 * 0.5 / np.sqrt(20000)
        assert rewards.std() == pytest.approx(0.5, rel=0.03)


def _trial(family, tasks, arms):
    """Observations (N + 1, B, O) and rewards (N, B) of pulling arms (N, B)."""
    env = family.batch(len(tasks), 1)
    seen, paid = [env.reset(tasks, np.arange(len(tasks), dtype=np.uint32))], []
    for pulls in arms:
        step = env.step(pulls[:, None])
        seen.append(step.observations)
        paid.append(step.rewards)
    return np.stack(seen), np.stack(paid), step


@pytest.mark.parametrize("name", ["bandit-bernoulli", "bandit-gaussian"])
def test_a_trial_shows_the_last_pull(name):
    """Catches an observation of another pull or row, a first flag that stays, and a reward in an arm's column."""
    family = families.make(name, arms=4, protocol="trial")
    tasks, arms = family.sample_tasks(3, "train", 0), np.random.default_rng(0).integers(0, 4, (100, 3))
    seen, paid, last = _trial(family, tasks, arms)
    assert (family.spec.observation_size, family.spec.horizon) == (6, 100)
    assert (seen[0] == [0, 0, 0, 0, 0, 1]).all()
    for t in range(100):
        for b in range(3):
            assert seen[t + 1, b].tolist() == [*(float(arms[t, b] == k) for k in range(4)), paid[t, b], 0.0]
    assert last.terminated.all()
    assert len(np.unique(paid)) > 1


@pytest.mark.parametrize("name", ["bandit-bernoulli", "bandit-gaussian"])
def test_arms_pay_alike_in_both_protocols(name):
    family, arms = families.make(name), np.random.default_rng(0).integers(0, 5, (20, 30))
    tasks = family.sample_tasks(30, "train", 0)
    fit, trial = (_trial(families.make(name, protocol=p, horizon=20), tasks, arms) for p in ("fit", "trial"))
    assert (fit[0] == 1).all()
    assert fit[0].shape[2] == family.spec.observation_size == family.spec.horizon == 1
    np.testing.assert_array_equal(fit[1], trial[1])


@pytest.mark.parametrize("name", ["bandit-bernoulli", "bandit-gaussian"])
def test_a_trial_keeps_the_contract(name):
    check_family(families.make(name, protocol="trial", arms=3))


def test_a_policy_can_play_trials():
    """It sees K + 2 numbers, and the task too where it is an oracle: 2 sets of 2 tasks, 3 trials, 7 pulls."""
    for oracle, inputs in ((False, 7), (True, 12)):
        settings = {"protocol": "trial", "horizon": 7, "oracle": oracle}
        learner = metarl.build("bandit-bernoulli", env_settings=settings, meta_batch_size=2, episodes_per_task=3)
        state, metrics = learner.iteration(learner.init(seed=0))
        assert metrics["env_steps"] == 2 * 2 * 3 * 7
        assert state.meta["0.weight"].shape[0] == inputs


def test_players_play_the_same_trial_in_both_protocols():
    """Catches players that pull less, or other rewards, where an episode of the family is a single pull."""
    tasks = families.make("bandit-bernoulli").sample_tasks(50, "test", 0)
    both = [families.make("bandit-bernoulli", protocol=p) for p in ("fit", "trial")]
    for player in PLAYERS.values():
        fit, trial = (play(family, tasks, player, 30, seed=1) for family in both)
        np.testing.assert_array_equal(fit.sums, trial.sums)
        np.testing.assert_array_equal(fit.counts, trial.counts)
        assert (trial.counts.sum(1) == 30).all()


# Gittins, Glazebrook and Weber (2011), tables of the Bernoulli index: (discount, alpha, beta) -> index
TABLE = {
    (0.9, 1, 1): 0.7029,
    (0.9, 2, 1): 0.8001,
    (0.9, 1, 2): 0.5001,
    (0.9, 2, 2): 0.6346,
    (0.95, 1, 1): 0.7614,
    (0.95, 2, 1): 0.8381,
    (0.95, 1, 2): 0.5601,
    (0.99, 1, 1): 0.8699,
    (0.99, 2, 1): 0.9102,
    (0.99, 1, 2): 0.7005,
}


@pytest.mark.parametrize(("state", "index"), TABLE.items(), ids=str)
def test_gittins_indices_are_those_of_the_tables(state, index):
    discount, alpha, beta = state
    assert indices(4, discount)[alpha - 1, beta - 1] == pytest.approx(index, abs=1e-4)


def test_a_gittins_index_is_what_bisection_finds():
    """Price by price, from one state, with a plain recursion: interpolation and the shared pass lose nothing."""
    discount, depth = 0.8, 60

    def gain(price, wins, losses):
        values = [max(price, (wins + i + 1) / (wins + losses + depth + 2)) for i in range(depth + 1)]
        for level in reversed(range(depth)):
            on = []
            for i in range(level + 1):
                p = (wins + i + 1) / (wins + losses + level + 2)
                on.append((1 - discount) * p + discount * (p * values[i + 1] + (1 - p) * values[i]))
            values = [max(price, x) for x in on]
        return on[0] - price

    for wins, losses in ((0, 0), (3, 1), (1, 4)):
        low, high = 0.0, 1.0
        for _ in range(25):
            middle = (low + high) / 2
            low, high = (middle, high) if gain(middle, wins, losses) > 0 else (low, middle)
        assert indices(5, discount)[wins, losses] == pytest.approx(low, abs=5e-5)


@pytest.fixture(scope="module")
def totals():
    """Total reward of 100 pulls in 3000 bandits of 5 arms, by player."""
    family = families.make("bandit-bernoulli")
    tasks = family.sample_tasks(3000, "test", 0)
    return {name: play(family, tasks, player, 100, seed=0).sums.sum(1) for name, player in PLAYERS.items()}


@pytest.mark.parametrize(
    ("player", "expected"), [("random", 50.0), ("oracle", 100 * 5 / 6)]
)  # the mean of U(0, 1) and of the largest of five
def test_random_and_oracle_earn_their_closed_forms(totals, player, expected):
    error = totals[player].std() / np.sqrt(len(totals[player]))
    assert abs(totals[player].mean() - expected) < 5 * error
    assert error < 0.5


def test_players_rank_as_published(totals):
    """The SNAIL paper (arXiv:1707.03141, table 1) reports 78.3 for Gittins at N = 100, K = 5."""
    mean = {name: total.mean() for name, total in totals.items()}
    assert mean["random"] < mean["ucb1"] < mean["thompson"] < mean["gittins"] < mean["oracle"]
    assert mean["gittins"] == pytest.approx(78.3, abs=1.2)
    assert mean["ucb1"] > 60


def _record(counts, sums):
    counts, sums = np.array([counts]), np.array([sums], dtype=float)
    return Record(counts, sums, int(counts.sum()), 100)


def test_scores_by_hand():
    """UCB1 2/4 + sqrt(2 ln 6 / 4) and 1/2 + sqrt(2 ln 6 / 2); untried arms first; posteriors' means."""
    scores = UCB1().scores(_record([4, 2, 0], [2, 1, 0]), np.zeros((1, 3)), np.random.default_rng(0))
    assert scores[0, :2] == pytest.approx([0.5 + np.sqrt(2 * np.log(6) / 4), 0.5 + np.sqrt(2 * np.log(6) / 2)])
    assert scores[0, 2] == np.inf
    many = Record(np.tile([[8, 0]], (20000, 1)), np.tile([[6.0, 0.0]], (20000, 1)), 8, 100)
    random = np.random.default_rng(0)
    assert Thompson().scores(many, many.sums, random).mean(0) == pytest.approx([0.7, 0.5], abs=0.01)  # 7/10, 1/2
    # prior N(1/2, 1/12), 8 rewards of variance 4 that sum to 6: (12/2 + 6/4) / (12 + 8/4) = 7.5/14
    draws = Thompson(std=2.0).scores(many, many.sums, random)
    assert draws.mean(0) == pytest.approx([7.5 / 14, 0.5], abs=0.01)
    assert draws.var(0) == pytest.approx([1 / 14, 1 / 12], rel=0.05)


def test_gittins_refuses_rewards_that_are_not_0_or_1():
    with pytest.raises(ValueError, match="Bernoulli"):
        Gittins().scores(_record([1, 0], [0.5, 0]), np.zeros((1, 2)), np.random.default_rng(0))


def test_the_best_empirical_arm_was_pulled():
    """An untried arm has no mean, even where all tried ones paid nothing or less."""
    assert best_empirical_arm(_record([3, 0, 2], [1, 0, 1])).tolist() == [2]
    assert best_empirical_arm(_record([3, 0, 2], [-1, 0, -3])).tolist() == [0]
