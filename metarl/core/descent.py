"""Outer rules that follow a gradient, or do without one: Adam, SGD, ProMP, Reptile."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam

from metarl.core.adapt import Objective, Outcome, Path, Ratio
from metarl.core.params import Params, is_finite, ravel
from metarl.core.update import Clock, State, Update, no_rejections, refuse_other_predictions, rejections, skip


@dataclass(frozen=True)
class Adam:
    r"""One Adam step on the meta-gradient; a non-finite gradient rejects the step.

    The step size of update t is, with ``decay_steps`` T,
    $$ \alpha_t = \alpha_T + \tfrac12 (\alpha_0 - \alpha_T)\bigl(1 + \cos(\pi \min(t/T, 1))\bigr) $$

    Attributes:
        lr: step size, alpha_0.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        decay_steps: T, updates over which the step size falls along a cosine; 0 keeps it.
        final_lr: alpha_T, from there on.
        clip_norm: longest gradient that is taken as it is, a longer one is shortened to it; 0 takes every one.
        clip_value: largest element, each is cut off at it, before the length is looked at; 0 cuts nothing.

    Reference: Kingma and Ba (2015), arXiv:1412.6980. The cosine: Antoniou et al. (2019), MAML++, arXiv:1810.09502, section
    4; elements cut off at 10: the code of Finn et al. (2017) for images.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decay_steps: int = 0
    final_lr: float = 0.0
    clip_norm: float = 0.0
    clip_value: float = 0.0

    needs_geometry: ClassVar[bool] = False
    needs_ratio: ClassVar[bool] = False

    def init(self, meta: Params) -> State:
        """Return zero moments and counters."""
        moments = {f"{kind}.{name}": torch.zeros_like(v) for kind in ("m", "v") for name, v in meta.items()}
        return {**moments, "steps": torch.tensor(0.0), **no_rejections()}

    def step(self, meta: Params, objective: Objective, state: State) -> Update:
        """Take one Adam step."""
        clock = Clock()
        before, gradient = objective.gradient(meta)
        clock.lap("seconds_meta_gradient")
        if not math.isfinite(before.loss) or not is_finite(gradient):
            return skip(meta, state, before, clock)
        metrics = {"loss": before.loss, "gradient_norm": float(ravel(gradient).norm())}
        meta, state = self.moved(meta, gradient, state)
        state, counters = rejections(state, False, "")
        return Update(meta, state, metrics | counters | clock.laps, before.scores)

    def moved(self, meta: Params, gradient: Params, state: State) -> tuple[Params, State]:
        """Return parameters and state after one step along a finite gradient."""
        values = [value.clone() for value in meta.values()]
        first, second = ([state[f"{kind}.{name}"].clone() for name in meta] for kind in ("m", "v"))
        steps = [state["steps"].clone() for _ in meta]
        adam(
            values,
            list(self._clipped(gradient).values()),
            first,
            second,
            [],
            steps,
            foreach=False,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=self._lr(float(state["steps"])),
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        moments = {f"m.{name}": m for name, m in zip(meta, first, strict=True)}
        moments |= {f"v.{name}": v for name, v in zip(meta, second, strict=True)}
        return dict(zip(meta, values, strict=True)), {**state, **moments, "steps": steps[0]}

    def _lr(self, steps: float) -> float:
        if not self.decay_steps:
            return self.lr
        part = min(steps / self.decay_steps, 1.0)
        return self.final_lr + 0.5 * (self.lr - self.final_lr) * (1 + math.cos(math.pi * part))

    def _clipped(self, gradient: Params) -> Params:
        if self.clip_value:
            gradient = {name: g.clamp(-self.clip_value, self.clip_value) for name, g in gradient.items()}
        if self.clip_norm:
            shorter = min(1.0, self.clip_norm / max(float(ravel(gradient).norm()), 1e-12))
            gradient = {name: shorter * g for name, g in gradient.items()}
        return gradient


@dataclass(frozen=True)
class ProMP:
    r"""Several Adam epochs on one meta-batch, with clipped likelihood ratios and a leash before adapting.

    $$ \min_\theta \tfrac1M \sum_i L_i^{\text{clip}}(U_k(\cdots U_1(\theta)\cdots))
       + \tfrac{\eta}{k} \sum_{j<k} \mathrm{KL}(\pi_{\text{acted}, j} \| \pi_{\theta_j}) $$

    where theta_j is what inner step j+1 starts from. Without inner steps it is the clipped rule of PPO, over all data at
    once. A gradient, or parameters, that are not finite reject all epochs.

    Attributes:
        adam: the rule of one epoch; its moments live on from one meta-batch to the next.
        epochs: steps on one meta-batch.
        clip: epsilon, beyond which from 1 a ratio earns nothing more.
        kl_penalty: eta.

    Reference: Rothfuss et al. (2019), arXiv:1810.06784, equations 11 to 13; Schulman et al. (2017), PPO, arXiv:1707.06347.
    Differs from the authors' code: eta is fixed (theirs can adapt it), and non-finite gradients reject the step. The
    objective's path (E-MAML's term, which the paper does not have) is in every epoch as it is: nothing of it is clipped.
    """

    adam: Adam = dataclasses.field(default_factory=Adam)
    epochs: int = 5
    clip: float = 0.3
    kl_penalty: float = 5e-4

    needs_geometry: ClassVar[bool] = True
    needs_ratio: ClassVar[bool] = True

    def init(self, meta: Params) -> State:
        """Return Adam's state."""
        return self.adam.init(meta)

    def step(self, meta: Params, objective: Objective, state: State) -> Update:
        """Take all epochs, or none."""
        clock, ratio = Clock(), objective.loss.ratio
        if ratio is None:
            raise ValueError("ProMP needs a loss that is made of likelihood ratios")
        path: Path | None = objective.path
        if objective.supports and self.kl_penalty:
            path = _Leash(ratio, self.kl_penalty / len(objective.supports), path)
        clipped = dataclasses.replace(objective, loss=ratio.clipped(self.clip), path=path)
        first: Outcome | None = None
        metrics, moved, own = {"gradient_norm": 0.0}, meta, state
        for _ in range(self.epochs):
            now, gradient = clipped.gradient(moved)
            if first is None:
                first = now
                refuse_other_predictions(now.kl, 1e-3)
                metrics = {"gradient_norm": float(ravel(gradient).norm())}
            if not math.isfinite(now.loss) or not is_finite(gradient):
                return skip(meta, state, first, clock)
            moved, own = self.adam.moved(moved, gradient, own)
        after = objective.value(moved)
        clock.lap("seconds_meta_gradient")
        assert first is not None
        if not math.isfinite(after.loss) or not is_finite(moved):
            return skip(meta, state, first, clock)
        own, counters = rejections(own, False, "")
        metrics |= {"loss": first.loss, "kl": after.kl, "loss_change": after.loss - first.loss}
        return Update(moved, own, metrics | counters | clock.laps)


@dataclass(frozen=True)
class _Leash:
    """Holds the parameters before an inner step near those that sampled for it."""

    ratio: Ratio
    weight: float
    other: Path | None

    def __call__(self, params: Params, support: Any, query: Any, step: int) -> Tensor:
        """Return the penalty of every task, and whatever else was there."""
        penalty = self.weight * self.ratio.divergence(params, support)
        return penalty if self.other is None else penalty + self.other(params, support, query, step)


@dataclass(frozen=True)
class SGD:
    """One gradient step; a non-finite gradient rejects it.

    Attributes:
        lr: step size.
    """

    lr: float = 1e-2

    needs_geometry: ClassVar[bool] = False
    needs_ratio: ClassVar[bool] = False

    def init(self, meta: Params) -> State:
        """Return zero counters."""
        return no_rejections()

    def step(self, meta: Params, objective: Objective, state: State) -> Update:
        """Take one step."""
        clock = Clock()
        before, gradient = objective.gradient(meta)
        clock.lap("seconds_meta_gradient")
        if not math.isfinite(before.loss) or not is_finite(gradient):
            return skip(meta, state, before, clock)
        state, counters = rejections(state, False, "")
        metrics = {"loss": before.loss, "gradient_norm": float(ravel(gradient).norm())}
        stepped = {name: value - self.lr * gradient[name] for name, value in meta.items()}
        return Update(stepped, state, metrics | counters | clock.laps, before.scores)


@dataclass(frozen=True)
class Reptile:
    r"""Move toward the mean of the adapted parameters; no meta-gradient.

    $$ \theta \leftarrow \theta + \epsilon\, \Bigl(\tfrac1M \sum_i U_k(\theta)_i - \theta\Bigr) $$

    It learns to adapt only over several inner steps: with one, it follows the gradient of the mean loss. The query set
    tells the loss that is logged, nothing more. Adapted parameters that are not finite reject the step.

    Attributes:
        lr: epsilon, 1 for the mean itself.
        decay_steps: updates over which epsilon falls to 0 along a line, as in the authors' code; 0 keeps it.

    Reference: Nichol, Achiam and Schulman (2018), arXiv:1803.02999, algorithm 2.
    """

    lr: float = 1.0
    decay_steps: int = 0

    needs_geometry: ClassVar[bool] = False
    needs_ratio: ClassVar[bool] = False

    def init(self, meta: Params) -> State:
        """Return zero counters."""
        return {"steps": torch.tensor(0.0), **no_rejections()}

    def step(self, meta: Params, objective: Objective, state: State) -> Update:
        """Take one step."""
        clock = Clock()
        before, adapted = objective.adapted(meta)
        clock.lap("seconds_meta_gradient")
        way = {name: adapted[name] - value for name, value in meta.items()}
        if not is_finite(way):
            state, counters = rejections(state, True, "the adapted parameters are not finite")
            metrics = {"loss": before.loss, "step_norm": 0.0}
            return Update(meta, state, metrics | counters | clock.laps, before.scores)
        state, counters = rejections(state, False, "")
        done = float(state["steps"])
        lr = self.lr * max(0.0, 1 - done / self.decay_steps) if self.decay_steps else self.lr
        metrics = {"loss": before.loss, "step_norm": lr * float(ravel(way).norm())}
        stepped = {name: value + lr * way[name] for name, value in meta.items()}
        state = {**state, "steps": torch.tensor(done + 1)}
        return Update(stepped, state, metrics | counters | clock.laps, before.scores)
