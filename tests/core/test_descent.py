"""ProMP against a loop written out with torch's own Adam; schedules, clipping and guards of the gradient rules."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from experiments import meta_gradients as exact
from metarl.core import Adam, GradientStep, Objective, Outcome, ProMP, Reptile
from metarl.core.params import ravel
from metarl.rl import Exploration, PolicyLoss, PolicyQuery

LR, EPOCHS, CLIP, ETA, INNER = 0.05, 4, 0.02, 0.7, 0.4
DRAWN = np.array([[0, 3, 5], [6, 2, 7]])


def data(params, drawn):
    """Drawn trajectories as if these parameters, a row for each task, had acted."""
    batch = exact.supports(ravel(exact.start()).numpy(), drawn)
    acted = exact.POLICY.distribution(params, batch.observations)
    return dataclasses.replace(batch, log_probs=exact.POLICY.log_prob(acted, batch.actions), behaviour=acted)


def problem(steps=1, exploration=None):
    """An objective whose data are of the policies that they claim to be of."""
    params = {n: v.expand(2, *v.shape) for n, v in exact.start().items()}
    rule, supports = GradientStep(PolicyLoss(exact.POLICY), INNER), []
    for step in range(steps):
        supports.append(data(params, (DRAWN + 3 * step) % 8))
        params = rule(params, supports[-1], step)
    query = dataclasses.replace(data(params, (DRAWN + 1) % 8), credit=torch.tensor([0.3, -0.2], dtype=torch.float64))
    path = Exploration(exact.POLICY, exploration) if exploration else None
    return Objective(rule, supports, query, PolicyQuery(exact.POLICY), path=path)


def by_hand(objective, steps, exploration=0.0):
    """Task after task, term after term, torch.optim.Adam."""
    names = list(exact.start())
    theta = [v.clone().requires_grad_() for v in exact.start().values()]
    optimiser = torch.optim.Adam(theta, lr=LR)

    def log_prob(params, batch, m):
        logits = batch.observations[m] @ params[0] + params[1]
        return logits.log_softmax(-1).gather(-1, batch.actions[m]).squeeze(-1), logits.log_softmax(-1)

    for _ in range(EPOCHS):
        optimiser.zero_grad()
        total = 0.0
        for m in range(2):
            params = theta
            for support in objective.supports:
                new, log_probs = log_prob(params, support, m)
                old = support.behaviour[0][m].detach()
                kl = (support.weights[m] * (old.exp() * (old - log_probs)).sum(-1)).sum()
                taken = (new - support.log_probs[m].detach()).sum()
                total = total + ETA / steps * kl - exploration * objective.query.credit[m] * taken
                ratio = (new - support.log_probs[m].detach()).exp()
                loss = -(support.weights[m] * ratio * support.advantages[m]).sum()
                slopes = torch.autograd.grad(loss, params, create_graph=True)
                params = [p - INNER * g for p, g in zip(params, slopes, strict=True)]
            query = objective.query
            ratio = (log_prob(params, query, m)[0] - query.log_probs[m].detach()).exp()
            a = query.advantages[m]
            total = total - (query.weights[m] * torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a)).sum()
        (total / 2).backward()
        optimiser.step()
    return dict(zip(names, (v.detach() for v in theta), strict=True))


@pytest.mark.parametrize(("steps", "exploration"), [(0, 0.0), (1, 0.0), (2, 0.0), (2, 0.5)])
def test_promp_is_its_loop(steps, exploration):
    """Catches a leash on the wrong policy, a clip that clips nothing, moments that start anew in every epoch."""
    objective, meta = problem(steps, exploration), exact.start()
    rule = ProMP(Adam(LR), EPOCHS, CLIP, ETA)
    update = rule.step(meta, objective, rule.init(meta))
    expected = by_hand(objective, steps, exploration)
    for name, value in expected.items():
        torch.testing.assert_close(update.meta[name], value, rtol=1e-6, atol=1e-8)
    unclipped = ProMP(Adam(LR), EPOCHS, 1.0, ETA).step(meta, objective, rule.init(meta))
    assert not torch.allclose(ravel(unclipped.meta), ravel(update.meta), atol=1e-5)  # the bound was met


def test_promp_reports_how_far_it_went():
    objective, meta = problem(), exact.start()
    rule = ProMP(Adam(LR), EPOCHS, CLIP, ETA)
    update = rule.step(meta, objective, rule.init(meta))
    before, after = objective.value(meta), objective.value(update.meta)
    assert update.metrics["kl"] == pytest.approx(after.kl)
    assert update.metrics["loss_change"] == pytest.approx(after.loss - before.loss, rel=1e-6)
    assert float(update.state["steps"]) == EPOCHS


def test_promp_refuses_data_of_another_policy():
    """As TRPO does: a ratio to probabilities that were never acted with means nothing."""
    objective, meta = problem(), exact.start()
    other = {n: v + torch.arange(v.numel(), dtype=v.dtype).view(v.shape) for n, v in meta.items()}
    rule = ProMP()
    with pytest.raises(ValueError, match="predictions differ from those recorded"):
        rule.step(other, objective, rule.init(other))


def test_promp_takes_all_epochs_or_none():
    """Parameters that overflow in the second epoch leave the first one undone, too."""
    objective, meta = problem(), exact.start()
    rule = ProMP(Adam(math.inf), EPOCHS, CLIP, ETA)
    update = rule.step(meta, objective, rule.init(meta))
    assert update.meta is meta
    assert update.metrics["rejected_updates"] == 1
    assert not bool(update.state["m.0.weight"].any())


@dataclasses.dataclass
class Slope:
    """An objective with a constant gradient, and adapted parameters that are 1 everywhere."""

    gradient_of: dict

    def gradient(self, meta):
        return Outcome(0.0, 0.0), self.gradient_of

    def adapted(self, meta):
        return Outcome(0.0, 0.0), {name: torch.ones_like(value) for name, value in meta.items()}


def walk(rule, meta, objective, steps):
    """Return the parameters after each step."""
    state, path = rule.init(meta), []
    for _ in range(steps):
        meta, state, _, _ = rule.step(meta, objective, state)
        path.append(meta)
    return path


def test_the_step_size_falls_along_a_cosine():
    """Under a constant gradient an Adam step is as long as the step size: torch's scheduler says how long."""
    start = {"w": torch.zeros(1, dtype=torch.float64)}
    objective = Slope({"w": torch.ones(1, dtype=torch.float64)})
    path = walk(Adam(0.3, eps=1e-12, decay_steps=4, final_lr=0.1), start, objective, 6)
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = torch.optim.Adam([weight], lr=0.3, eps=1e-12)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4, 0.1)
    for step, point in enumerate(path):
        weight.grad = torch.ones_like(weight)
        optimiser.step()
        if step < 4:
            schedule.step()
        assert float(point["w"]) == pytest.approx(weight.item())


def test_gradients_are_cut_off_and_shortened():
    """Elements first, then the length; Adam's first moment after one step is a tenth of what it was given."""
    gradient = {"w": torch.tensor([30.0, -40.0]), "b": torch.tensor([0.5])}
    meta = {"w": torch.zeros(2), "b": torch.zeros(1)}
    for settings, given in (
        ({"clip_value": 10.0}, [10.0, -10.0, 0.5]),
        ({"clip_norm": 5.0}, [5 * x / math.hypot(30, 40, 0.5) for x in (30.0, -40.0, 0.5)]),
        ({"clip_norm": 100.0}, [30.0, -40.0, 0.5]),
        ({"clip_value": 3.0, "clip_norm": 3.0}, [3 * x / math.hypot(3, 3, 0.5) for x in (3.0, -3.0, 0.5)]),
    ):
        state = Adam(**settings).step(meta, Slope(gradient), Adam().init(meta)).state
        first = torch.cat([state["m.w"], state["m.b"]]) / 0.1
        assert first.tolist() == pytest.approx(given, rel=1e-5)


def test_reptile_comes_to_rest():
    """epsilon = 0.5 (1 - t/4): from 0 toward 1 by 0.5, 0.375, 0.25, 0.125 of the way, then not at all."""
    path = walk(Reptile(0.5, decay_steps=4), {"w": torch.zeros(1)}, Slope({}), 6)
    left, expected = 1.0, []
    for rate in (0.5, 0.375, 0.25, 0.125, 0.0, 0.0):
        left *= 1 - rate
        expected.append(1 - left)
    assert [float(point["w"]) for point in path] == pytest.approx(expected)
