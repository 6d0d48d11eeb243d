"""Which columns of an observation every agent of a team sees (:class:`metarl.families.Agents`)."""

from __future__ import annotations

from metarl.families import RLFamily, RLSpec
from metarl.nets.shared import Columns
from metarl.rl.trials import Trial, bare


def columns(family: RLFamily) -> Columns | None:
    """Return what each of R agents sees, R rows of column numbers; None where there is no team.

    In a trial: its own part of the last action, what that paid, whether an episode begins; then everywhere its own numbers,
    its own mask, and what an oracle's agent knows of the task, which the learner puts behind the observation.
    """
    spec, size = bare(family).spec, family.spec.observation_size
    if spec.agents is None:
        return None
    count, (acted, told, own, legal) = spec.agents.count, _sizes(family)
    start = size - spec.observation_size  # of the family's own observation
    rows = []
    for agent in range(count):
        of_action, of_state = _block(0, acted, agent), _block(start, own, agent)
        mask = _block(start + count * own, legal, agent)
        known = (size + number for number in _known(spec, agent))
        rows.append((*of_action, *range(start - told, start), *of_state, *mask, *known))
    return tuple(rows)


def mask_of_agent(family: RLFamily) -> slice:
    """Return where an agent's row of :func:`columns` has its mask; an empty slice where it has none."""
    acted, told, own, legal = _sizes(family)
    return slice(acted + told + own, acted + told + own + legal)


def fault(spec: RLSpec) -> str:
    """Say what is wrong with a family's team; empty where nothing is."""
    agents = spec.agents
    if agents is None:
        return ""
    count = agents.count
    if not (isinstance(count, int) and count > 0):
        return f"whose agents.count={count!r} is no positive whole number"
    if (spec.observation_size - _masked(spec)) % count or spec.action_size % count:
        return f"whose agents.count={count} does not divide its observations and actions"
    if spec.choices is not None and spec.choices.counts != spec.choices.counts[: spec.action_size // count] * count:
        return f"whose {count} agents differ in their choices.counts={spec.choices.counts}"
    lengths = {len(row) for row in agents.known}
    if agents.known and (len(agents.known) != count or len(lengths) != 1):
        return f"whose agents.known is not {count} rows of one length"
    if any(not 0 <= number < len(spec.parameters) for row in agents.known for number in row):
        return f"whose agents.known names parameters beyond its {len(spec.parameters)}"
    return ""


def _sizes(family: RLFamily) -> tuple[int, int, int, int]:
    """Numbers that an agent sees: of its last action, of what all are told in a trial, its own, and its mask."""
    spec = bare(family).spec
    assert spec.agents is not None
    count, masked = spec.agents.count, _masked(spec)
    told = 2 if isinstance(family, Trial) else 0
    front = family.spec.observation_size - spec.observation_size - told
    return front // count, told, (spec.observation_size - masked) // count, masked // count


def _known(spec: RLSpec, agent: int) -> tuple[int, ...]:
    if not spec.oracle or spec.agents is None:
        return ()
    return spec.agents.known[agent] if spec.agents.known else tuple(range(len(spec.parameters)))


def _masked(spec: RLSpec) -> int:
    return sum(spec.choices.counts) if spec.choices is not None and spec.choices.masked else 0


def _block(first: int, size: int, agent: int) -> range:
    return range(first + agent * size, first + (agent + 1) * size)
