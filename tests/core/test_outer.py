"""Outer rules on objectives that are written down: step lengths, acceptance, guards."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import pytest
import torch

from metarl.core import SGD, TRPO, Adam
from metarl.core.adapt import Outcome
from metarl.core.params import ravel, unravel

RULES = {"trpo": TRPO(), "adam": Adam(), "sgd": SGD()}


def _meta(seed=0, dtype=torch.double):
    g = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(2, 3, generator=g, dtype=dtype), "b": torch.randn(2, generator=g, dtype=dtype)}


@dataclass
class Written:
    """An objective of functions of the flat parameters; it counts what it is asked."""

    origin: dict
    loss: object
    kl: object
    slope: object
    product: object = None
    candidates: list = field(default_factory=list)
    fraction: float = 0.0
    recorded_kl: float = 0.0

    def gradient(self, meta):
        flat = ravel(meta)
        return Outcome(float(self.loss(flat)), self.recorded_kl), unravel(self.slope(flat), meta)

    def fisher(self, meta, fraction):
        self.fraction = fraction
        return lambda v: unravel(self.product(ravel(v)), meta)

    def value(self, meta):
        flat = ravel(meta)
        self.candidates.append(flat)
        return Outcome(float(self.loss(flat)), float(self.kl(flat)))


def _quadratic_problem(seed=0, damping=0.0):
    """Linear loss g'x and KL 0.5 d'Hd around the origin; a hair under the bound, so that rounding decides nothing."""
    g = torch.Generator().manual_seed(seed)
    meta = _meta(seed)
    at, size = ravel(meta), 8
    a = torch.randn(size, size, generator=g, dtype=torch.double)
    h = a @ a.T + torch.eye(size, dtype=torch.double)
    slope = torch.randn(size, generator=g, dtype=torch.double)
    whole = h + damping * torch.eye(size, dtype=torch.double)
    problem = Written(
        meta,
        loss=lambda x: slope @ (x - at),
        kl=lambda x: 0.5 * (1 - 1e-9) * (x - at) @ whole @ (x - at),
        slope=lambda x: slope,
        product=lambda v: h @ v,
    )
    return meta, problem, whole, slope


# -- TRPO --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_trpo_takes_the_natural_gradient_step_to_the_kl_bound(seed, damping):
    """x = -sqrt(2 max_kl / g'H^-1 g) H^-1 g, H damped; a lost 2, a lost damping or a wrong sign shows."""
    meta, problem, h, slope = _quadratic_problem(seed, damping)
    rule = TRPO(max_kl=0.03, cg_iterations=30, cg_damping=damping, fisher_fraction=0.25)
    updated, _, metrics, _ = rule.step(meta, problem, rule.init(meta))
    direction = torch.linalg.solve(h, slope)
    expected = -math.sqrt(2 * 0.03 / float(slope @ direction)) * direction
    torch.testing.assert_close(ravel(updated) - ravel(meta), expected, rtol=1e-4, atol=1e-6)
    assert metrics["kl"] == pytest.approx(0.03, rel=1e-4)
    assert problem.fraction == 0.25
    assert metrics["line_search_steps"] == 1.0
    assert metrics["line_search_accepted"] == 1.0
    assert metrics["step_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    assert metrics["loss_change"] == pytest.approx(float(slope @ expected), rel=1e-4)


def test_trpo_shortens_a_step_beyond_the_bound_to_just_inside():
    """KL ten times the model's: sqrt(0.95 / 10) = 0.308 of the step is shorter than the factor 0.5, and inside at once."""
    meta, problem, _, _ = _quadratic_problem()
    inner = problem.kl
    problem.kl = lambda x: 10 * inner(x)
    rule = TRPO(max_kl=0.02, cg_iterations=30, cg_damping=0.0, line_search_shrink=0.5)
    updated, _, metrics, _ = rule.step(meta, problem, rule.init(meta))
    lengths = [float((x - ravel(meta)).norm()) for x in problem.candidates]
    assert lengths == pytest.approx([lengths[0], lengths[0] * math.sqrt(0.095)], rel=1e-4)
    assert metrics["line_search_steps"] == 2.0
    assert metrics["kl"] == pytest.approx(0.95 * 0.02, rel=1e-4)
    assert torch.equal(ravel(updated), problem.candidates[-1])


def test_trpo_shortens_by_its_factor_where_the_loss_fails_inside_the_bound():
    """Loss rises beyond 0.3 of the step, KL is half the model's: 0.5 and 0.25 follow, which the KL alone would not ask for."""
    meta, problem, _, slope = _quadratic_problem()
    inner, at = problem.kl, ravel(meta)
    problem.kl = lambda x: 0.5 * inner(x)
    limit = 0.3**2 * 0.5 * 0.02
    problem.loss = lambda x: slope @ (x - at) if problem.kl(x) <= limit else 1.0
    rule = TRPO(max_kl=0.02, cg_iterations=30, cg_damping=0.0, line_search_shrink=0.5)
    _, _, metrics, _ = rule.step(meta, problem, rule.init(meta))
    lengths = [float((x - at).norm()) for x in problem.candidates]
    assert lengths[:3] == pytest.approx([lengths[0], lengths[0] / 2, lengths[0] / 4], rel=1e-6)
    assert metrics["kl"] == pytest.approx(0.5 * 0.02 / 16, rel=1e-4)


@pytest.mark.parametrize("farther_is_better", [True, False])
def test_trpo_lengthens_once_a_step_that_falls_short_of_the_bound(farther_is_better):
    """KL a quarter of the model's: sqrt(0.95 / 0.25) = 1.949 of the step reaches 0.95 of the bound; the better one counts."""
    meta, problem, _, slope = _quadratic_problem()
    inner, at = problem.kl, ravel(meta)
    problem.kl = lambda x: 0.25 * inner(x)
    if not farther_is_better:
        problem.loss = lambda x: slope @ (x - at) if inner(x) <= 0.021 else -1e-9
    rule = TRPO(max_kl=0.02, cg_iterations=30, cg_damping=0.0)
    updated, _, metrics, _ = rule.step(meta, problem, rule.init(meta))
    lengths = [float((x - at).norm()) for x in problem.candidates]
    assert lengths == pytest.approx([lengths[0], lengths[0] * math.sqrt(3.8)], rel=1e-4)
    assert metrics["line_search_steps"] == 2.0
    assert metrics["kl"] == pytest.approx((0.95 if farther_is_better else 0.25) * 0.02, rel=1e-4)
    assert torch.equal(ravel(updated), problem.candidates[farther_is_better])
    assert metrics["step_norm"] == pytest.approx(lengths[farther_is_better], rel=1e-9)


def test_trpo_remembers_how_long_a_step_meets_the_bound():
    """The second step on a landscape with a quarter of the model's KL needs one candidate; a rejection forgets."""
    meta, problem, _, _ = _quadratic_problem()
    inner = problem.kl
    problem.kl = lambda x: 0.25 * inner(x)
    rule = TRPO(max_kl=0.02, cg_iterations=30, cg_damping=0.0)
    _, state, first, _ = rule.step(meta, problem, rule.init(meta))
    updated, _, second, _ = rule.step(meta, problem, state)
    assert (first["line_search_steps"], second["line_search_steps"]) == (2.0, 1.0)
    assert second["kl"] == pytest.approx(0.95 * 0.02, rel=1e-4)
    assert second["step_norm"] == pytest.approx(float((ravel(updated) - ravel(meta)).norm()), rel=1e-6)
    _, forgotten, _, _ = rule.step(*_broken("nan gradient"), state)
    assert float(forgotten["length"]) == 1.0


def _fuzzed(seed):
    """A landscape with a random bend and a random KL, and TRPO's step on it."""
    meta, problem, _, slope = _quadratic_problem(seed)
    g = torch.Generator().manual_seed(seed)
    bend, swell = (float(100 ** torch.rand(1, generator=g)) * scale for scale in (0.5, 1.0))
    at, model = ravel(meta), problem.kl
    problem.loss = lambda x: slope @ (x - at) + bend * (x - at) @ (x - at)
    problem.kl = lambda x: swell * model(x)
    rule = TRPO(max_kl=0.05, line_search_steps=4, line_search_shrink=0.6)
    return meta, problem, rule.step(meta, problem, rule.init(meta))


def test_trpo_never_accepts_more_kl_or_more_loss():
    """What is returned obeys both conditions or is the same object; the landscapes must have provoked both."""
    seen = set()
    for seed in range(40):
        meta, problem, (updated, _, metrics, _) = _fuzzed(seed)
        seen.add(metrics["line_search_accepted"])
        if metrics["line_search_accepted"]:
            assert problem.loss(ravel(updated)) < problem.loss(ravel(meta))
            assert problem.kl(ravel(updated)) <= 0.05
        else:
            assert updated is meta
            assert metrics["line_search_steps"] == 4.0
    assert seen == {0.0, 1.0}


def test_trpo_refuses_a_model_that_is_not_the_one_that_acted():
    """Batch statistics or dropout predict otherwise than when the data were drawn: every candidate would fail, for ever."""
    meta, problem, _, _ = _quadratic_problem()
    problem.recorded_kl = 0.05
    with pytest.raises(ValueError, match=r"differ from those recorded with the data \(KL 0.05 before any step\)"):
        TRPO(max_kl=0.01).step(meta, problem, TRPO().init(meta))


def test_trpo_does_not_accept_an_equal_loss():
    meta, problem, _, _ = _quadratic_problem()
    problem.loss = lambda x: 0.0
    rule = TRPO(line_search_steps=3)
    updated, _, metrics, _ = rule.step(meta, problem, rule.init(meta))
    assert updated is meta
    assert len(problem.candidates) == 3
    assert metrics["rejected_updates"] == 1.0


def _broken(name):
    meta, problem, _, slope = _quadratic_problem()
    nan = torch.full_like(slope, math.nan)
    if name == "nan gradient":
        problem.slope = lambda x: torch.cat([slope[:-1], nan[:1]])
    elif name == "inf gradient":
        problem.slope = lambda x: slope / 0.0
    elif name == "inf loss":
        problem.loss = lambda x: math.inf
    elif name == "nan loss":
        problem.loss = lambda x: math.nan
    elif name == "zero gradient":
        problem.slope = lambda x: 0 * slope
    elif name == "negative curvature":
        problem.product = lambda v: -v
    elif name == "nan curvature":
        problem.product = lambda v: nan
    elif name == "inf curvature":
        problem.product = lambda v: v / 0.0
    elif name == "nan at every candidate":
        at, loss = ravel(meta), problem.loss
        problem.loss = lambda x: loss(x) if torch.equal(x, at) else math.nan
    elif name == "nan kl":
        problem.kl = lambda x: math.nan
    elif name == "loss falls to -inf":
        at, loss = ravel(meta), problem.loss
        problem.loss = lambda x: loss(x) if torch.equal(x, at) else -math.inf
    return meta, problem


BROKEN = [
    "nan gradient",
    "inf gradient",
    "inf loss",
    "nan loss",
    "zero gradient",
    "negative curvature",
    "nan curvature",
    "inf curvature",
    "nan at every candidate",
    "nan kl",
    "loss falls to -inf",
]


@pytest.mark.parametrize("name", BROKEN)
def test_trpo_rejects_what_is_broken_and_keeps_every_bit(name):
    """The same object comes back, its bits unchanged; the counters count; no division by zero or root of a negative."""
    meta, problem = _broken(name)
    bits = {n: v.clone() for n, v in meta.items()}
    rule = TRPO()
    start = rule.init(meta)
    frozen = {n: v.clone() for n, v in start.items()}
    updated, state, metrics, _ = rule.step(meta, problem, start)
    assert updated is meta
    assert all(torch.equal(updated[n], bits[n]) for n in bits)
    assert all(torch.equal(start[n], frozen[n]) for n in frozen), "the state was written in place"
    assert int(state["rejected_total"]) == 1
    assert int(state["rejected_in_a_row"]) == 1
    assert metrics["rejected_updates"] == 1.0
    assert metrics["line_search_accepted"] == 0.0
    if name == "zero gradient":
        assert problem.candidates == []
        assert all(map(math.isfinite, metrics.values())), "0/0 in a logged number"


def test_a_nan_candidate_is_passed_over_and_a_later_sound_one_is_taken():
    meta, problem, _, _ = _quadratic_problem()
    at, loss = ravel(meta), problem.loss
    first = []

    def blows_up_far_away(x):
        if not torch.equal(x, at) and not first:
            first.append(x)
            return math.nan
        return loss(x)

    problem.loss = blows_up_far_away
    rule = TRPO(line_search_shrink=0.8, cg_damping=0.0, cg_iterations=30)
    updated, state, metrics, _ = rule.step(meta, problem, rule.init(meta))
    assert metrics["line_search_steps"] == 3.0  # NaN, 0.8 of it (64 % of the bound), and that lengthened
    torch.testing.assert_close(ravel(updated) - at, math.sqrt(0.95) * (first[0] - at), rtol=1e-4, atol=0)
    assert int(state["rejected_total"]) == 0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_five_rejections_in_a_row_warn_and_a_success_starts_the_count_again(rule):
    """The counter that warns forgets at a success, the total does not."""
    meta, broken = _broken("nan gradient")
    _, sound, _, _ = _quadratic_problem()
    state = rule.init(meta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            _, state, _, _ = rule.step(meta, broken, state)
        _, state, metrics, _ = rule.step(meta, sound, state)
        assert int(state["rejected_in_a_row"]) == 0
        assert metrics["rejected_updates"] == 4.0
        for _ in range(4):
            _, state, _, _ = rule.step(meta, broken, state)
    with pytest.warns(RuntimeWarning, match="last 5 meta-updates were rejected"):
        _, state, metrics, _ = rule.step(meta, broken, state)
    assert metrics["rejected_updates"] == 9.0


# -- Adam and SGD ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
@pytest.mark.parametrize("options", [{}, {"lr": 0.03, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6}])
def test_adam_is_torchs_adam_to_the_bit(dtype, options):
    """Five steps on a changing gradient; catches moments mixed up between parameters and a wrong bias correction."""
    meta = _meta(1, dtype)
    rule = Adam(**options)
    names = {"lr": rule.lr, "betas": (rule.beta1, rule.beta2), "eps": rule.eps}
    theirs = {n: v.clone().requires_grad_() for n, v in meta.items()}
    optimiser = torch.optim.Adam(theirs.values(), foreach=False, **names)
    ours, state = meta, rule.init(meta)
    for step in range(5):
        objective = Written(meta, lambda x: x.sum(), None, slope=lambda x, s=step: (x + s).sin())
        ours, state, _, _ = rule.step(ours, objective, state)
        flat = ravel({n: v.detach() for n, v in theirs.items()})
        for value, gradient in zip(theirs.values(), unravel((flat + step).sin(), meta).values(), strict=True):
            value.grad = gradient.clone()
        optimiser.step()
        assert all(torch.equal(ours[n], theirs[n].detach()) for n in meta), f"step {step}"
    assert float(state["steps"]) == 5.0


def test_sgd_is_one_step_down_the_gradient():
    meta = _meta(2)
    rule = SGD(lr=0.25)
    objective = Written(meta, lambda x: x.square().sum(), None, slope=lambda x: 2 * x)
    updated, _, metrics, _ = rule.step(meta, objective, rule.init(meta))
    torch.testing.assert_close(ravel(updated), 0.5 * ravel(meta), rtol=0, atol=0)
    assert metrics["gradient_norm"] == pytest.approx(2 * float(ravel(meta).norm()))


@pytest.mark.parametrize("rule", [Adam(), SGD()], ids=["adam", "sgd"])
@pytest.mark.parametrize("name", ["nan gradient", "inf gradient", "inf loss", "nan loss"])
def test_a_rejected_step_touches_neither_parameters_nor_moments(rule, name):
    """A NaN that reaches Adam's moments stays there for ever."""
    meta, broken = _broken(name)
    _, sound, _, _ = _quadratic_problem()
    meta, state, _, _ = rule.step(meta, sound, rule.init(meta))
    updated, after, metrics, _ = rule.step(meta, broken, state)
    assert updated is meta
    for key, value in state.items():
        if not key.startswith("rejected"):
            assert torch.equal(after[key], value), key
    assert int(after["rejected_total"]) == 1
    assert metrics["rejected_updates"] == 1.0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_step_is_a_pure_function(rule):
    """Twice from the same parameters and state: the same bits out, the arguments unchanged."""
    meta, problem, _, _ = _quadratic_problem()
    state = rule.init(meta)
    inputs = [{n: v.clone() for n, v in values.items()} for values in (meta, state)]
    first, second = rule.step(meta, problem, state), rule.step(meta, problem, state)
    for a, b in zip(first[:2], second[:2], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[n], b[n]) for n in a)
    for value, copy in zip((meta, state), inputs, strict=True):
        assert all(torch.equal(value[n], copy[n]) for n in copy)
    assert not torch.equal(ravel(first.meta), ravel(meta))
