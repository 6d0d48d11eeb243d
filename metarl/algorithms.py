"""Algorithms by name: each pairs an inner with an outer rule. ``python -m metarl.algorithms`` lists them.

Their settings are declared in :mod:`metarl.rules`, without importing torch. A new algorithm is one more :func:`preset`.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from metarl.rules import (
    AdamOuter,
    ClippedOuter,
    ContextInner,
    GradientInner,
    MemoryInner,
    PlainInner,
    ProMPOuter,
    ProximalInner,
    ReptileOuter,
    SgdOuter,
    TrpoOuter,
)
from metarl.settings import SettingsError, check, nearest

if TYPE_CHECKING:
    from metarl.core.inner import InnerRule, TaskLoss
    from metarl.core.outer import OuterRule

_OUTER = re.compile("-(trpo|adam|sgd)$")
_MAML = "Finn, Abbeel and Levine (2017), arXiv:1703.03400"


class Algorithm(Protocol):
    """A frozen dataclass of settings that knows how to build its rules.

    Attributes:
        paper: where it comes from.
        recommended: run settings it prefers to the global defaults; a family's own recommendation wins over them.
    """

    paper: ClassVar[str]
    recommended: ClassVar[Mapping[str, Any]]

    def rules(
        self, inner_loss: TaskLoss[Any], inner_lr: float, names: Sequence[str]
    ) -> tuple[InnerRule[Any], OuterRule]:
        """Build the inner and the outer rule for a model whose parameters have these names."""
        ...


def preset(
    inner: type, outer: type, doc: str, paper: str, defaults: Mapping[str, Any] | None = None, **recommended: Any
) -> type:
    """Put an algorithm together.

    Args:
        inner: settings of the inner rule, with a method ``rule(inner_loss, inner_lr, names)``.
        outer: settings of the outer rule, with a method ``rule()``.
        doc: one sentence.
        paper: where it comes from.
        defaults: what differs from the defaults of ``inner`` and ``outer``.
        **recommended: run settings it prefers, such as ``inner_steps=5``.

    Returns:
        A dataclass of all these settings, an :class:`Algorithm`.
    """
    groups = {group: [field.name for field in dataclasses.fields(group)] for group in (inner, outer)}
    defaults = defaults or {}
    columns: list[tuple[str, Any, Any]] = [
        (f.name, f.type, dataclasses.field(default=defaults.get(f.name, f.default), metadata=f.metadata))
        for group in groups
        for f in dataclasses.fields(group)
    ]

    def rules(self: Any, inner_loss: Any, inner_lr: float, names: Sequence[str]) -> Any:
        parts = [group(**{name: getattr(self, name) for name in own}) for group, own in groups.items()]
        return parts[0].rule(inner_loss, inner_lr, names), parts[1].rule()

    body = {"paper": paper, "recommended": recommended, "rules": rules, "__doc__": doc, "__module__": __name__}
    return dataclasses.make_dataclass("Algorithm", columns, namespace=body, frozen=True)


# Fisher products need a derivative that is linear, and adapted parameters that are those of the whole support set
_CAREFUL = {"solve_iterations": 20, "fisher_fraction": 1.0}
_FIRST, _HEAD, _WEIGHT = {"first_order": True}, {"adapt": ("head",)}, {"rates": "weight"}
_TRPO = "Schulman et al. (2015), arXiv:1502.05477"
_FOMAML = f"{_MAML}, section 5.2"
_META_SGD = "Li et al. (2017), arXiv:1707.09835"
_ANIL = "Raghu et al. (2020), arXiv:1909.09157"
_CAVIA = "Zintgraf et al. (2019), arXiv:1810.03642"
_E_MAML = "Stadie et al. (2018), arXiv:1803.01118"
_PROMP = "Rothfuss et al. (2019), arXiv:1810.06784"
_IMAML = "Rajeswaran et al. (2019), arXiv:1909.04630"

ALGORITHMS: dict[str, type] = {
    "maml-trpo": preset(GradientInner, TrpoOuter, "MAML with a trust-region meta-update.", f"{_MAML}; {_TRPO}"),
    "maml-adam": preset(
        GradientInner, AdamOuter, "MAML with an Adam meta-update.", f"{_MAML}; Kingma and Ba (2015), arXiv:1412.6980"
    ),
    "maml-sgd": preset(GradientInner, SgdOuter, "MAML with plain meta-gradient descent.", _MAML),
    "fomaml-trpo": preset(GradientInner, TrpoOuter, "First-order MAML, trust region.", _FOMAML, _FIRST),
    "fomaml-adam": preset(GradientInner, AdamOuter, "First-order MAML, Adam.", _FOMAML, _FIRST),
    "meta-sgd-trpo": preset(
        GradientInner, TrpoOuter, "A learned rate for every weight, trust region.", _META_SGD, _WEIGHT
    ),
    "meta-sgd-adam": preset(GradientInner, AdamOuter, "A learned rate for every weight, Adam.", _META_SGD, _WEIGHT),
    "anil-trpo": preset(GradientInner, TrpoOuter, "Only the last layer adapts, trust region.", _ANIL, _HEAD),
    "anil-adam": preset(GradientInner, AdamOuter, "Only the last layer adapts, Adam.", _ANIL, _HEAD),
    "cavia-trpo": preset(ContextInner, TrpoOuter, "Only a few added inputs adapt, trust region.", _CAVIA, inner_lr=1.0),
    "cavia-adam": preset(ContextInner, AdamOuter, "Only a few added inputs adapt, Adam.", _CAVIA, inner_lr=1.0),
    "imaml-trpo": preset(
        ProximalInner,
        TrpoOuter,
        "A regularised optimum, differentiated implicitly; trust region.",
        _IMAML,
        {**_CAREFUL, "strength": 10.0},  # with 2, and steps of 0.1 or 0.5, navigation-2d is not solved
        inner_lr=0.1,
    ),
    "imaml-adam": preset(ProximalInner, AdamOuter, "A regularised optimum, differentiated implicitly; Adam.", _IMAML),
    "e-maml-trpo": preset(
        GradientInner,
        TrpoOuter,
        "MAML that also learns what to try before it adapts, trust region.",
        _E_MAML,
        inner_surrogate="logp",
        exploration=1.0,
    ),
    "promp": preset(GradientInner, ProMPOuter, "Clipped epochs, with a leash on the policy before adapting.", _PROMP),
    "rl2": preset(
        MemoryInner,
        ClippedOuter,
        "A recurrent policy that remembers a trial of several episodes; its parameters never adapt.",
        "Duan et al. (2016), RL², arXiv:1611.02779; Wang et al. (2016), arXiv:1611.05763",
        inner_steps=0,
        eval_steps=0,
        hidden_sizes=(),
        episodes_per_task=10,
        meta_batch_size=40,
        chunk_tasks=20,
        gae_lambda=0.95,
    ),
    "reptile": preset(
        PlainInner,
        ReptileOuter,
        "Toward the mean of the adapted parameters, without a meta-gradient.",
        "Nichol, Achiam and Schulman (2018), arXiv:1803.02999",
        inner_steps=5,
    ),
}


def names() -> list[str]:
    """Return the names of all algorithms."""
    return sorted(ALGORITHMS)


def variant(name: str, like: str) -> str:
    """Return the variant of a method that has another algorithm's outer rule: of ``imaml`` like ``maml-adam``, ``imaml-adam``.

    Any other name, known or not, is returned as it is.
    """
    rule = _OUTER.search(like)
    full = name + rule.group() if rule and name not in ALGORITHMS else name
    return full if full in ALGORITHMS else name


def lookup(name: str) -> type:
    """Return the settings class of an algorithm.

    Raises:
        SettingsError: for an unknown name, with the nearest one.
    """
    if name not in ALGORITHMS:
        raise SettingsError(f"Unknown algorithm '{name}'. {nearest(name, names())}")
    return ALGORITHMS[name]


def make(name: str, **settings: Any) -> Algorithm:
    """Make an algorithm: ``make("maml-trpo", max_kl=0.02)``."""
    schema: Callable[..., Algorithm] = lookup(name)
    return schema(**check(lookup(name), settings, prefix="algo."))


def page(name: str) -> str:
    """Return the page of an algorithm, in Markdown: equation, reference, what differs from its authors' code, when to use it.

    The variants of one method, ``maml-trpo`` and ``maml-adam`` say, share a page, which has the name ``maml``, too.

    Raises:
        SettingsError: for an unknown name, with the nearest one.
    """
    methods = {_OUTER.sub("", other) for other in names()}
    if name not in methods:
        lookup(name)
    method = _OUTER.sub("", name)
    return (importlib.resources.files("metarl") / "pages" / f"{method}.md").read_text(encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """List all algorithms with their papers, or print the pages of those named; return the exit code."""
    try:
        if argv:
            print("\n".join(page(name) for name in argv), end="")
            return 0
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in names():
        schema: Any = lookup(name)
        print(f"{name:14} {schema.__doc__} {schema.paper}")
    print("\nWithout -trpo or -adam a name means that with the rule which the family is usually trained with.")
    print("python -m metarl.algorithms NAME prints a page: equation, reference, differences, when to use it.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
