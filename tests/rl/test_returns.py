"""Returns, advantages and the baseline: numbers worked out by hand, and least squares by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.rl import baseline, returns


def _column(*values, dtype=torch.double):
    """One task, one episode: (1, T, 1)."""
    return torch.tensor(values, dtype=dtype).view(1, -1, 1)


def _flags(*values):
    return torch.tensor(values).view(1, -1, 1)


NEVER = _flags(False, False, False)
LAST = _flags(False, False, True)

# rewards 1, 2, 3; values 4, 5, 6; gamma 1/2
REWARDS, VALUES = _column(1.0, 2.0, 3.0), _column(4.0, 5.0, 6.0)


def test_discounted_returns_by_hand():
    """R2 = 3; R1 = 2 + 3/2 = 3.5; R0 = 1 + 3.5/2 = 2.75."""
    result = returns.discounted_returns(REWARDS, torch.ones_like(REWARDS), 0.5)
    assert result.flatten().tolist() == [2.75, 3.5, 3.0]


def test_discounted_returns_end_with_the_episode_whatever_follows():
    """Two valid steps and rubbish after: R1 = 2, R0 = 1 + 2/2 = 2, then 0."""
    result = returns.discounted_returns(_column(1.0, 2.0, 1e6), _column(1.0, 1.0, 0.0), 0.5)
    assert result.flatten().tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [
        # delta2 = 3 - 6 = -3                 (terminated: 100, the value of what comes next, must not enter)
        # delta1 = 2 + 6/2 - 5 = 0;           delta0 = 1 + 5/2 - 4 = -0.5
        (0.0, [-0.5, 0.0, -3.0]),
        # carry = gamma lambda = 0.25:        A2 = -3; A1 = 0 - 0.75 = -0.75; A0 = -0.5 - 0.1875 = -0.6875
        (0.5, [-0.6875, -0.75, -3.0]),
        # carry = 0.5, i.e. R - V:            2.75 - 4 = -1.25; 3.5 - 5 = -1.5; 3 - 6 = -3
        (1.0, [-1.25, -1.5, -3.0]),
    ],
)
def test_advantages_of_a_terminated_episode(gae_lambda, expected):
    """Bootstrapping through a termination makes falling over look good."""
    following = _column(5.0, 6.0, 100.0)
    result = returns.advantages(REWARDS, VALUES, following, LAST, NEVER, 0.5, gae_lambda)
    assert result.flatten().tolist() == expected


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [
        # the state after the limit is worth 10:  delta2 = 3 + 10/2 - 6 = 2; delta1 = 0; delta0 = -0.5
        (0.0, [-0.5, 0.0, 2.0]),
        # carry 0.25: A2 = 2; A1 = 0 + 0.5 = 0.5; A0 = -0.5 + 0.125 = -0.375
        (0.5, [-0.375, 0.5, 2.0]),
        # carry 0.5:  A2 = 2; A1 = 1; A0 = -0.5 + 0.5 = 0
        (1.0, [0.0, 1.0, 2.0]),
    ],
)
def test_advantages_of_a_truncated_episode_with_bootstrap(gae_lambda, expected):
    """Treating the time limit as an end devalues every late state."""
    result = returns.advantages(REWARDS, VALUES, _column(5.0, 6.0, 10.0), NEVER, LAST, 0.5, gae_lambda)
    assert result.flatten().tolist() == expected


def test_advantages_of_a_finite_horizon():
    """The future beyond the limit is worth 0 by the caller's choice: A2 = 3 + 0 - 6 = -3, like a termination."""
    result = returns.advantages(REWARDS, VALUES, _column(5.0, 6.0, 0.0), NEVER, LAST, 0.5, 1.0)
    assert result.flatten().tolist() == [-1.25, -1.5, -3.0]


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_nothing_after_an_end_reaches_back_over_it(flag):
    """An episode that ends at step 1: A1 = 2 + v/2 - 5, A0 = -0.5 + A1/2, whatever the third step holds."""
    ends = {"terminated": NEVER, "truncated": NEVER, flag: _flags(False, True, False)}
    results = []
    for rubbish in (0.0, 1e9):
        rewards, values = _column(1.0, 2.0, rubbish), _column(4.0, 5.0, rubbish)
        following = _column(5.0, 8.0, rubbish)
        result = returns.advantages(rewards, values, following, ends["terminated"], ends["truncated"], 0.5, 1.0)
        results.append(result.flatten()[:2])
    bootstrap = 0.0 if flag == "terminated" else 4.0  # gamma * 8
    second = 2.0 + bootstrap - 5.0
    assert results[0].tolist() == results[1].tolist() == [-0.5 + second / 2, second]


# -- normalise ---------------------------------------------------------------------------------------------------------


def _weights(*shape, seed=0):
    weights = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    weights[:, ::3] = 0
    return weights / weights.sum(1, keepdim=True)


def test_normalised_advantages_have_mean_0_and_standard_deviation_1_per_task():
    """Standard deviation, not variance; every task by itself; padding (weight 0) counts for nothing."""
    weights = _weights(3, 20)
    scale = torch.tensor([[1.0], [50.0], [1e-3]], dtype=torch.double)
    values = scale * torch.randn(3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.double) + 7
    result = returns.normalise(values, *returns.moments(values, weights))
    for row, weight in zip(result.numpy(), weights.numpy(), strict=True):
        mean = np.average(row, weights=weight)
        assert mean == pytest.approx(0.0, abs=1e-9)
        assert np.sqrt(np.average((row - mean) ** 2, weights=weight)) == pytest.approx(1.0, rel=2e-5)
    valid = weights > 0
    polluted = torch.where(valid, values, 1e6)
    polluted = returns.normalise(polluted, *returns.moments(polluted, weights))
    torch.testing.assert_close(polluted[valid], result[valid], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 1.0, -123.456, 1e4])
def test_equal_advantages_become_zero_and_not_amplified_rounding(constant):
    """In float32 the mean of equal numbers is off by an ulp; dividing that by itself would give a preference of 1."""
    weights = _weights(2, 4000, seed=3).float()
    values = torch.full((2, 4000), constant)
    result = returns.normalise(values, *returns.moments(values, weights))
    assert result.abs().max() < 1e-2


# -- baseline ----------------------------------------------------------------------------------------------------------

M, T, E = 3, 12, 4


def _episodes(dtype=torch.double, seed=0, episodes=E, horizon=T, size=2):
    """Random states, returns and ragged masks."""
    g = torch.Generator().manual_seed(seed)
    observations = 4 * torch.randn(M, horizon, episodes, size, generator=g, dtype=torch.double)
    targets = 30 * torch.randn(M, horizon, episodes, generator=g, dtype=torch.double)
    lengths = torch.randint(3, horizon + 1, (M, 1, episodes), generator=g)
    mask = (torch.arange(horizon).view(1, -1, 1) < lengths).double()
    return observations.to(dtype), (targets * mask).to(dtype), mask.to(dtype)


def _features(observation, t):
    """One state's features, by the definition: s, s^2 with s clipped to +-10, then tau, tau^2, tau^3, 1."""
    s, tau = np.clip(observation, -10, 10), t / 100
    return np.concatenate([s, s**2, [tau, tau**2, tau**3, 1.0]])


def _ridge(observations, targets, mask, ridge=1e-5):
    """Least squares of one task over its valid steps, by NumPy in float64 (augmented rows, no normal equations)."""
    valid = [(t, e) for t in range(mask.shape[0]) for e in range(mask.shape[1]) if mask[t, e]]
    phi = np.array([_features(observations[t, e].astype(np.float64), t) for t, e in valid])
    goal = np.array([targets[t, e] for t, e in valid], dtype=np.float64)
    rows = np.concatenate([phi, np.sqrt(ridge) * np.eye(phi.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([goal, np.zeros(phi.shape[1])]), rcond=None)[0]


def test_features_by_hand():
    """Clipping at 10 and the time of step 50: tau = 1/2."""
    result = baseline.features(torch.tensor([[3.0, -20.0]], dtype=torch.double), torch.tensor([50]))
    assert result.tolist() == [[3.0, -10.0, 9.0, 100.0, 0.5, 0.25, 0.125, 1.0]]


def test_fit_is_ridge_regression_of_each_task_on_its_valid_steps():
    """Time restarts in every episode; padding has no say; no task sees another's returns."""
    observations, targets, mask = _episodes()
    weights = baseline.fit(observations, targets, mask)
    values = baseline.predict(weights, observations)
    for m in range(M):
        expected = _ridge(*(x[m].numpy() for x in (observations, targets, mask)))
        np.testing.assert_allclose(weights[m, :, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
        for t in range(T):
            for e in range(E):
                value = expected @ _features(observations[m, t, e].numpy(), t)
                assert values[m, t, e].item() == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_value_behind_the_time_limit_is_that_of_a_task_that_goes_on():
    """x' = 0.9 x with reward 1 + x for ever is worth 1 / (1 - gamma) + x / (1 - 0.9 gamma); a baseline that is fitted to
    the returns up to the limit takes the state there to be worth nothing."""
    gamma, steps = 0.95, 6
    x = torch.rand(1, 1, 8, 1, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * 5
    x = x * 0.9 ** torch.arange(steps + 1)[:, None, None]  # (1, T + 1, E, 1)
    mask = torch.ones(1, steps, 8, dtype=torch.double)
    targets = returns.discounted_returns(1 + x[:, :-1, :, 0], mask, gamma)
    left = steps - torch.arange(steps)[:, None].expand(steps, 8)
    weights = baseline.fit(x[:, :-1], targets, mask, baseline.Beyond(x[:, -1], gamma ** left[None].double()))
    for states in (x[:, :-1], x[:, -1]):
        expected = 1 / (1 - gamma) + states[..., 0] / (1 - 0.9 * gamma)
        torch.testing.assert_close(baseline.predict_timeless(weights, states), expected, rtol=1e-3, atol=0)


def test_fit_ignores_padding_and_other_tasks():
    observations, targets, mask = _episodes()
    expected = baseline.fit(observations, targets, mask)
    padded = mask == 0
    polluted = torch.where(padded.unsqueeze(-1), 9.0, observations), torch.where(padded, 777.0, targets)
    spoilt = baseline.fit(*polluted, mask)
    torch.testing.assert_close(spoilt, expected, rtol=1e-9, atol=1e-9)
    targets[1:] *= -3
    torch.testing.assert_close(baseline.fit(observations, targets, mask)[0], expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["random", "constant", "duplicate", "large", "near"])
def test_fit_in_float32_predicts_what_float64_does(kind):
    """Collinear features (a constant observation beside the bias, a copy) make the normal equations singular but for
    the ridge of 1e-5, which is below the rounding of float32 sums over thousands of states."""
    observations, targets, mask = _episodes(torch.float32, seed=1, episodes=20, horizon=100, size=3)
    if kind == "constant":
        observations[..., 1] = 3.0
    elif kind == "duplicate":
        observations[..., 1] = observations[..., 0]
    elif kind == "large":
        observations *= 100.0  # nearly all clipped to +-10: the squares are nearly constant
    elif kind == "near":
        observations[..., 1] = 5.0 + 1e-3 * observations[..., 1]
    smooth = observations[..., 0] - 0.1 * observations[..., 0] ** 2 + torch.arange(100.0).view(1, -1, 1) / 10
    targets = (smooth + 0.1 * targets) * mask
    values = baseline.predict(baseline.fit(observations, targets, mask), observations)
    for m in range(M):
        expected = _ridge(*(x[m].numpy() for x in (observations, targets, mask)))
        wanted = np.array(
            [[expected @ _features(observations[m, t, e].double().numpy(), t) for e in range(20)] for t in range(100)]
        )
        scale = np.std(targets[m].numpy())
        error = np.abs(values[m].numpy() - wanted)[mask[m].numpy() > 0]
        assert error.max() < 1e-2 * scale


def test_credit_compares_a_task_with_the_others():
    """Three tasks, two episodes of which one ends early; worked out in a loop. What a task earned is in no baseline of its own."""
    g = torch.Generator().manual_seed(0)
    rewards, advantages = (torch.randn(3, 4, 2, generator=g, dtype=torch.double) for _ in range(2))
    mask = torch.ones(3, 4, 2, dtype=torch.double)
    mask[1, 2:, 0] = 0
    targets = returns.discounted_returns(rewards * mask, mask, 0.9)
    weights = mask.flatten(1) / mask.flatten(1).sum(1, keepdim=True)
    found = returns.credit(targets, mask, returns.moments(advantages.flatten(1), weights)[1])
    earned = [
        np.mean([sum(0.9**t * float((rewards * mask)[m, t, e]) for t in range(4)) for e in range(2)]) for m in range(3)
    ]
    for m in range(3):
        valid = advantages[m][mask[m] > 0].numpy()
        length = float(mask[m].sum()) / 2
        others = np.mean([earned[k] for k in range(3) if k != m])
        assert float(found[m]) == pytest.approx((earned[m] - others) / (valid.std() * length), rel=1e-6)
    alone = returns.credit(targets[:1], mask[:1], torch.ones(1, 1))
    assert alone.tolist() == [0.0]
