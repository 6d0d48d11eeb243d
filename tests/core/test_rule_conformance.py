"""The conformance kit for rules: each deliberate flaw is found and named, and sound rules pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from metarl.core import SGD, TRPO, Adam, GradientStep, InnerRule, LearnedRates, ProMP, ProximalSolve, Reptile, Update
from metarl.core.inner import TaskLoss
from metarl.core.params import Params, ravel
from metarl.testing import check_inner_rule, check_outer_rule


@dataclasses.dataclass(frozen=True)
class Flawed:
    """One gradient step with a flaw, or with learned step sizes."""

    loss: TaskLoss
    flaw: str

    def init(self, params: Params) -> Params:
        return {"rates": torch.tensor(0.3, dtype=torch.float64)} if "rates" in self.flaw else {}

    def __call__(self, params: Params, support: object, step: int = 0) -> Params:
        create = any(v.requires_grad for v in params.values()) and self.flaw != "first order"
        with torch.enable_grad():
            start = params if create else {n: v.detach().requires_grad_() for n, v in params.items()}
            losses = self.loss(start, support)
            loss = losses.mean() if self.flaw == "mean over tasks" else losses.sum()
            gradients = torch.autograd.grad(
                loss, list(start.values()), create_graph=create or self.flaw == "graph", allow_unused=True
            )
        gradients = [torch.zeros_like(v) if g is None else g for v, g in zip(params.values(), gradients, strict=True)]
        result = {}
        for (name, value), g in zip(params.items(), gradients, strict=True):
            if self.flaw == "detached gradient" and name == "0.weight":
                g = g.detach()
            elif self.flaw == "mixes tasks":
                g = g + 0.1 * g.mean(0)
            rate = params["rates"].unsqueeze(-1) if self.flaw == "learned rates" and name == "1.bias" else 0.1
            result[name] = value - (rate if name != "rates" else 0.0) * g
        if self.flaw == "rates move":
            result["rates"] = params["rates"] + 0.1
        if self.flaw == "in place":
            params["1.bias"].sub_(0.1)
        if self.flaw == "drops":
            del result["1.bias"]
        return result


FLAWED_RULES = {
    "drops": "keep names and shapes",
    "mean over tasks": "alike alone and in a meta-batch",
    "mixes tasks": "alike alone and in a meta-batch",
    "graph": "no graph is built",
    "detached gradient": "is the slope of the outer loss",
    "first order": "is the slope of the outer loss",
    "in place": "writes nothing in place",
    "rates move": "passes through unchanged",
    "idle rates": "receives a gradient",
}


@pytest.mark.parametrize(("flaw", "rule"), FLAWED_RULES.items(), ids=FLAWED_RULES)
def test_a_flawed_inner_rule_is_caught(flaw, rule):
    """With the flaws of the field: the inner learning rate divided by the meta-batch, derivatives lost half-way."""
    with pytest.raises(AssertionError, match=rule):
        check_inner_rule(lambda loss: Flawed(loss, flaw))


def test_sound_rules_pass_first_order_when_declared_and_learned_step_sizes():
    """What the kit must let through."""
    check_inner_rule(lambda loss: Flawed(loss, ""), inner_steps=(1, 2))
    check_inner_rule(lambda loss: Flawed(loss, "first order"), exact=False)
    check_inner_rule(lambda loss: Flawed(loss, "learned rates"))


@dataclasses.dataclass(frozen=True)
class Claims:
    """A sound rule in another's clothes: what it says of its order need not be so, and it may learn what it never uses."""

    rule: InnerRule
    first_order: bool
    idle: tuple[str, ...] = ()

    def init(self, params: Params) -> Params:
        return self.rule.init(params) | {name: torch.tensor(0.3, dtype=torch.float64) for name in self.idle}

    def __call__(self, params: Params, support: object, step: int = 0) -> Params:
        return params | self.rule({n: v for n, v in params.items() if n not in self.idle}, support, step)


MAKERS = {
    "gradient step": lambda loss, first: GradientStep(loss, 0.2, first),
    "last layer": lambda loss, first: GradientStep(loss, 0.2, first, subset=("1.*",)),
    "learned rates": lambda loss, first: GradientStep(loss, 0.2, first, rates=LearnedRates(0.1)),
    "from zero": lambda loss, first: GradientStep(loss, 0.2, first, subset=("0.bias",), from_zero=True),
    "proximal": lambda loss, first: ProximalSolve(loss, 0.1, 4.0, 30, first_order=first),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_rule_that_lies_about_its_order_is_caught(name):
    """FOMAML that pays for second order, and MAML that lost it: the latter passed where exact=False was said."""
    for first in (True, False):
        check_inner_rule(lambda loss, first=first: Claims(MAKERS[name](loss, first), first), exact=False)
        lie = "carries second derivatives" if first else "carries no second derivative"
        with pytest.raises(AssertionError, match=lie):
            check_inner_rule(lambda loss, first=first: Claims(MAKERS[name](loss, first), not first), exact=False)


def test_a_lie_about_the_order_is_caught_in_any_number_of_steps():
    """Second derivatives that only a second step has: a check of the first alone lets them pass."""

    @dataclasses.dataclass(frozen=True)
    class Later:
        loss: TaskLoss
        first_order: bool = True

        def init(self, params: Params) -> Params:
            return {}

        def __call__(self, params: Params, support: object, step: int = 0) -> Params:
            return GradientStep(self.loss, 0.2, step == 0)(params, support)

    check_inner_rule(Later, inner_steps=(1,), exact=False)
    with pytest.raises(AssertionError, match="carries no second derivative"):
        check_inner_rule(Later, exact=False)


@pytest.mark.parametrize("exact", [True, False])
def test_one_learned_number_among_several_that_gets_no_gradient_is_named(exact):
    """One that got a gradient covered for all others."""
    with pytest.raises(AssertionError, match=r"receives a gradient; spare$"):
        check_inner_rule(
            lambda loss: Claims(GradientStep(loss, 0.2, rates=LearnedRates(0.1)), False, ("spare",)), exact=exact
        )


def test_rates_of_a_step_that_is_never_taken_are_named_and_those_of_a_later_one_are_not():
    """Three steps have rates: one step leaves two without a gradient, as it must; that alone is no flaw."""

    def make(loss):
        return GradientStep(loss, 0.2, rates=LearnedRates(0.1, False, 3))

    check_inner_rule(make, inner_steps=(1, 3))
    with pytest.raises(AssertionError, match=r"receives a gradient; rate\.2\.0\.bias, rate\.2\.0\.weight"):
        check_inner_rule(make, inner_steps=(1, 2))


# -- outer rules with a flaw -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FlawedOuter:
    """Gradient descent with a flaw."""

    flaw: str

    needs_geometry = False

    def init(self, meta: Params) -> dict[str, torch.Tensor]:
        return {"rejected": torch.tensor(0), "calls": torch.tensor(0)}

    def step(self, meta, objective, state):
        _, slope = objective.gradient(meta)
        finite = torch.isfinite(ravel(slope)).all() or self.flaw == "takes anything"
        if not finite:
            kept = meta if self.flaw != "copies" else {n: v.clone() for n, v in meta.items()}
            count = state["rejected"] + (self.flaw != "does not count")
            return Update(kept, state | {"rejected": count}, {"rejected_updates": float(count)})
        if self.flaw == "hesitates" and state["rejected"] == 0:
            return Update(meta, state | {"rejected": torch.tensor(1)}, {"rejected_updates": 1.0})
        rate = -0.05 if self.flaw == "climbs" else 0.05
        if self.flaw == "forgets":
            rate *= 1 + int(state["calls"].data_ptr() == self.known.setdefault("p", state["calls"].data_ptr()))
        stepped = {n: v - rate * slope[n] for n, v in meta.items()}
        if self.flaw == "in place":
            meta["0.bias"].sub_(0.01)
        return Update(stepped, state, {"rejected_updates": float(state["rejected"])})

    known: dict[str, int] = dataclasses.field(default_factory=dict)


FLAWED_OUTER = {
    "in place": "writes nothing in place",
    "forgets": "survives a checkpoint",
    "climbs": "the loss falls",
    "copies": "returns the very same parameters",
    "takes anything": "returns the very same parameters",
    "does not count": "is counted",
}


@pytest.mark.parametrize(("flaw", "rule"), FLAWED_OUTER.items(), ids=FLAWED_OUTER)
def test_a_flawed_outer_rule_is_caught(flaw, rule):
    with pytest.raises(AssertionError, match=rule):
        check_outer_rule(FlawedOuter(flaw))


@pytest.mark.parametrize(
    "rule",
    [TRPO(max_kl=0.02), Adam(1e-2), Adam(1e-2, decay_steps=5, clip_norm=1.0), SGD(0.05), ProMP(Adam(1e-2)), Reptile()],
    ids=str,
)
def test_the_outer_rules_keep_the_contract(rule):
    check_outer_rule(rule, max_kl=0.02 if isinstance(rule, TRPO) else None)


def test_a_rule_that_has_rejected_before_is_sound():
    """A kit that takes the count of all rejections for that of the last one."""
    check_outer_rule(FlawedOuter("hesitates"))


def test_a_step_beyond_the_bound_is_caught():
    """A rule that believes in twice the bound."""
    with pytest.raises(AssertionError, match="no step goes beyond max_kl"):
        check_outer_rule(TRPO(max_kl=0.02), max_kl=0.01)
