r"""Which meta-gradient each inner surrogate takes, exactly: on an MDP so small that all trajectories can be written down.

    python -m experiments.meta_gradients     a few seconds; writes experiments/results/meta_gradients/

Two states, two actions, two steps; the second state depends on the first action, so that the scores of different steps have
to do with each other (a bandit would hide that). Expectations over samples are finite sums, without Monte-Carlo error. There
are two true meta-gradients for one inner step of size alpha: that of the ideal $V(\theta + \alpha \nabla V(\theta))$, and that
of $E_\tau[V(U(\theta, \tau))]$, where U adapts to a finite sample of n trajectories. The estimators are the library's own
losses and its own objective; the truth is NumPy, by central differences.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import recording
from metarl.core import GradientStep, Objective, Params, Terms
from metarl.core.params import expand, ravel, unravel
from metarl.nets import MLP
from metarl.rl import CategoricalPolicy, Exploration, PolicyLoss
from metarl.rl.losses import Batch

# P(second state = 1 | first action), and rewards of (state, action) in the first and the second step
MOVES = np.array([0.25, 0.8])
REWARDS = np.array([[[0.3, -0.2], [0.0, 0.0]], [[1.0, -0.4], [-0.7, 1.6]]])
START = np.array([[0.4, -0.3], [-0.5, 0.6]]), np.array([0.2, -0.1])  # weights (state, action), biases (action,)
ALPHA = 0.5
STEPS = 2
SURROGATES = ("logp", "lvc", "loaded-dice", "dice")
SAMPLES = (1, 2, 3, 4, 5)
POLICY = CategoricalPolicy(MLP((2, 2)), (2,))

# every trajectory: first action, second state, second action
TRAJECTORIES = np.array(list(itertools.product((0, 1), (0, 1), (0, 1))))


def start() -> Params:
    """Return the policy's parameters, float64: logits are ``weight[state] + bias``."""
    weight, bias = START
    return {"0.weight": torch.tensor(weight), "0.bias": torch.tensor(bias)}


def _probabilities(theta: np.ndarray) -> np.ndarray:
    """Return pi(a|s), (..., 2, 2), of flat parameters (..., 6): weights first."""
    logits = theta[..., :4].reshape(*theta.shape[:-1], 2, 2) + theta[..., None, 4:]
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    return logits / logits.sum(-1, keepdims=True)


def value(theta: np.ndarray) -> np.ndarray:
    """Return V(theta), the exact expected sum of both rewards, by dynamic programming; (..., 6) to (...)."""
    pi = _probabilities(theta)
    later = (pi * REWARDS[1]).sum(-1)  # (..., state)
    reached = np.stack([1 - MOVES, MOVES], -1)  # (action, state)
    return (pi[..., 0, :] * (REWARDS[0, 0] + (later[..., None, :] * reached).sum(-1))).sum(-1)


def chances(theta: np.ndarray) -> np.ndarray:
    """Return the probability of each of the 8 trajectories, (..., 8)."""
    pi = _probabilities(theta)
    first, state, second = TRAJECTORIES.T
    moved = np.where(state == 1, MOVES[first], 1 - MOVES[first])
    return pi[..., 0, first] * moved * pi[..., state, second]


def to_go() -> np.ndarray:
    """Return the rewards from each step on, (8, 2)."""
    first, state, second = TRAJECTORIES.T
    late = REWARDS[1][state, second]
    return np.stack([REWARDS[0, 0][first] + late, late], -1)


def scores(theta: np.ndarray) -> np.ndarray:
    """Return the gradients of log pi of both steps of each trajectory, (8, 2, 6)."""
    pi, found = _probabilities(theta), np.zeros((8, STEPS, 6))
    for row, (first, state, second) in enumerate(TRAJECTORIES):
        for step, (at, action) in enumerate(((0, first), (state, second))):
            by_logit = (np.arange(2) == action) - pi[at]
            found[row, step, 2 * at : 2 * at + 2] = by_logit
            found[row, step, 4:] = by_logit
    return found


def draws(samples: int) -> np.ndarray:
    """Return every way to draw so many trajectories, (8^n, n)."""
    return np.array(list(itertools.product(range(8), repeat=samples)))


def expected_adapted(theta: np.ndarray, samples: int) -> float:
    """Return E[V(theta + alpha g)], where g is the policy gradient of n sampled trajectories."""
    drawn = draws(samples)
    gradients = (scores(theta) * to_go()[..., None]).sum(1)  # of each trajectory
    adapted = theta + ALPHA * gradients[drawn].mean(1)
    return float(chances(theta)[drawn].prod(1) @ value(adapted))


def ideal_adapted(theta: np.ndarray) -> float:
    """Return V(theta + alpha V'(theta))."""
    return float(value(theta + ALPHA * slope(value, theta)))


def slope(function: Any, theta: np.ndarray, width: float = 1e-5) -> np.ndarray:
    """Return the gradient by central differences of fourth order."""
    shifts = width * np.eye(len(theta))
    near, far = ([function(theta + k * s) - function(theta - k * s) for s in shifts] for k in (1, 2))
    return (8 * np.array(near) - np.array(far)) / (12 * width)


def supports(theta: np.ndarray, drawn: np.ndarray) -> Batch:
    """Return drawn trajectories, (M, n), as M support sets; rewards to go are the advantages, and a mean over trajectories."""
    first, state, second = TRAJECTORIES[drawn].transpose(2, 0, 1)  # each (M, n)
    states = np.stack([np.zeros_like(state), state], 1)  # (M, T, n)
    actions = torch.tensor(np.stack([first, second], 1)).flatten(1).unsqueeze(-1)
    observations = torch.eye(2, dtype=torch.float64)[torch.tensor(states).flatten(1)]
    advantages = torch.tensor(to_go()[drawn].transpose(0, 2, 1).copy()).flatten(1)
    acted = POLICY.distribution(expand(_params(theta), len(drawn)), observations)
    return Batch(
        observations=observations,
        actions=actions,
        advantages=advantages,
        weights=torch.full_like(advantages, 1 / drawn.shape[1]),
        log_probs=POLICY.log_prob(acted, actions),
        behaviour=acted,
        horizon=STEPS,
    )


def hessians(theta: np.ndarray, surrogate: str, decay: float = 0.9) -> np.ndarray:
    """Return what a surrogate takes for the second derivative of V, seen in each single trajectory, (8, 6, 6)."""
    batch, loss = supports(theta, np.arange(8)[:, None]), PolicyLoss(POLICY, surrogate, decay)

    def gain(row: int) -> Any:
        alone = batch.rows(slice(row, row + 1))
        return lambda x: -loss({n: v.unsqueeze(0) for n, v in unravel(x, start()).items()}, alone).sum()

    point = torch.tensor(theta)
    return np.stack([torch.func.hessian(gain(row))(point).numpy() for row in range(8)])


@dataclass(frozen=True)
class _Value:
    """Outer loss: what adapted parameters are worth, exactly; each draw counts as often as it happens."""

    geometry: None = None
    ratio: None = None

    def __call__(self, params: Params, query: Batch) -> Terms:
        """Return -V, weighted, (M,)."""
        assert query.credit is not None
        logits = params["0.weight"] + params["0.bias"].unsqueeze(1)
        pi, rewards = logits.softmax(-1), torch.tensor(REWARDS)
        later = (pi * rewards[1]).sum(-1)
        reached = torch.tensor(np.stack([1 - MOVES, MOVES], -1))
        worth = (pi[:, 0] * (rewards[0, 0] + (later.unsqueeze(1) * reached).sum(-1))).sum(-1)
        return Terms(-_shares(query) * worth, None)


def _shares(query: Batch) -> Tensor:
    """Return M times each draw's probability: the weights under which a mean over tasks is the expectation."""
    return query.advantages[:, 0]


def expected_meta_gradient(theta: np.ndarray, samples: int, surrogate: str, exploration: bool = False) -> np.ndarray:
    """Return the expectation of the library's meta-gradient over every draw of n trajectories, (6,)."""
    drawn = draws(samples)
    support, share = supports(theta, drawn), torch.tensor(chances(theta)[drawn].prod(1) * len(drawn))
    adapted = theta + ALPHA * (scores(theta) * to_go()[..., None]).sum(1)[drawn].mean(1)
    worth = torch.tensor(value(adapted) - value(theta))
    query = Batch(
        support.observations[:, :1],
        support.actions[:, :1],
        share.unsqueeze(1),
        torch.ones_like(share).unsqueeze(1),
        support.log_probs[:, :1],
        (support.behaviour[0][:, :1],),
        credit=share * worth,
    )
    path = Exploration(POLICY) if exploration else None
    inner = GradientStep(PolicyLoss(POLICY, surrogate), ALPHA)
    _, gradient = Objective(inner, [support], query, _Value(), path=path).gradient(_params(theta))
    return -ravel(gradient).numpy()


def _params(theta: np.ndarray) -> Params:
    return unravel(torch.tensor(theta), start())


def measure() -> dict[str, Any]:
    """Return biases and variances of everything, relative to the norm of what they estimate."""
    theta = ravel(start()).numpy()
    chance, ideal = chances(theta), slope(ideal_adapted, theta)
    second = np.stack([slope(lambda x, i=i: slope(value, x, 1e-3)[i], theta, 1e-3) for i in range(6)])
    hessian = {}
    for name in SURROGATES:
        each = hessians(theta, name)
        mean = np.tensordot(chance, each, 1)
        variance = float(chance @ np.square(each - mean).sum((1, 2)))
        hessian[name] = {
            "relative_bias": float(np.linalg.norm(mean - second) / np.linalg.norm(second)),
            "relative_deviation": math.sqrt(variance) / float(np.linalg.norm(second)),
        }
    names = {name: (name, False) for name in SURROGATES} | {"logp with E-MAML's term": ("logp", True)}
    curves: dict[str, Any] = {name: {"finite": [], "ideal": []} for name in names}
    for samples in SAMPLES:
        finite = slope(lambda x, n=samples: expected_adapted(x, n), theta)
        for name, (surrogate, exploration) in names.items():
            found = expected_meta_gradient(theta, samples, surrogate, exploration)
            for target, truth in (("finite", finite), ("ideal", ideal)):
                off = np.linalg.norm(found - truth) / np.linalg.norm(truth)
                curves[name][target].append(float(off))
    return {"alpha": ALPHA, "samples": list(SAMPLES), "hessian": hessian, "meta_gradient": curves}


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draw the relative error of the expected meta-gradient against the inner sample, for both truths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {
        "finite": "against the gradient of E[V(adapted to n trajectories)]",
        "ideal": "against the gradient of V(θ + a∇V(θ))",
    }
    for axes, (target, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for name, curve in result["meta_gradient"].items():
            axes.plot(result["samples"], curve[target], marker="o", label=name)
        axes.set_xticks(result["samples"])
        axes.set_xlabel("inner trajectories n")
        axes.set_title(title, fontsize=10)
    first = figure.axes[0]
    first.set_ylim(bottom=-0.01)
    first.set_ylabel("relative error of the expectation")
    first.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def report(result: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    lines = [
        "Second derivative of V as each inner surrogate sees it: error of its expectation, and standard deviation in one"
        " trajectory, both over the norm of the truth; then the relative error of the expected meta-gradient, against the"
        f" gradient of E[V(U)] for n = 1 and {SAMPLES[-1]} inner trajectories, and against that of V(θ + a∇V(θ)).",
        "",
        f"| surrogate | Hessian, error | Hessian, deviation | E[V(U)], n = 1 | n = {SAMPLES[-1]}"
        f" | V(θ + a∇V), n = 1 | n = {SAMPLES[-1]} |",
        "| --- |" + " --- |" * 6,
    ]
    for name, curve in result["meta_gradient"].items():
        own = result["hessian"].get(name)
        cells = ["", ""] if own is None else [_short(own[key]) for key in ("relative_bias", "relative_deviation")]
        cells += [_short(curve[target][at]) for target in ("finite", "ideal") for at in (0, -1)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`{result['command']}`, commit {result['provenance']['commit']}.", ""])


def _short(error: float) -> str:
    return "0" if error < 1e-8 else f"{error:.3f}"


def main() -> int:
    """Measure, write, draw."""
    from metarl.run.provenance import provenance

    torch.set_num_threads(1)
    result = measure() | {"command": "python -m experiments.meta_gradients", "provenance": provenance()}
    out = pathlib.Path("experiments/results/meta_gradients")
    recording.write(out / "result.json", result)
    draw(result, out / "bias.png")
    text = report(json.loads((out / "result.json").read_text(encoding="utf-8")))
    print(text)
    picture = f"![bias of the meta-gradients]({(out / 'bias.png').relative_to(recording.README.parent)})"
    recording.insert(recording.README, "<!-- meta-gradients -->", f"{picture}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
