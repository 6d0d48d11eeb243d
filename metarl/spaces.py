"""What actions are, and who takes them: choices, and teams of equal agents."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Choices:
    """A discrete action space: every component of an action is one of so many choices, numbered from 0.

    Attributes:
        counts: choices of each component, length A: ``(5,)`` for one choice of five, ``(3, 2)`` for two components.
        masked: whether an observation ends in ``sum(counts)`` numbers, 1 for a legal choice and 0 for one never played.
    """

    counts: tuple[int, ...]
    masked: bool = False


@dataclasses.dataclass(frozen=True)
class Agents:
    """A team of R equal agents with one reward, for which a learner may use one policy: one for any R.

    An observation has the numbers of one agent behind those of another, equally many of each, and behind all of them their
    masks in the same order, where choices are masked. An action has their components likewise.

    Attributes:
        count: R.
        known: numbers of the task's parameters that each agent of an oracle sees, R rows of one length; empty shows the
            whole task to every agent.
        credited: whether simulations tell what each agent answers for (:class:`metarl.families.Crediting`).
    """

    count: int
    known: tuple[tuple[int, ...], ...] = ()
    credited: bool = False
