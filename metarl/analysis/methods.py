"""What a run is compared with: the names of references, how each learns, and which fit a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metarl.families import RLSpec


@dataclass(frozen=True)
class Method:
    """One way to solve a test task without meta-learning.

    Attributes:
        about: what it is, in a line.
        pretrained: whether it learns on the training tasks before it sees the test task.
        told: whether it observes the task.
        learns: whether it learns on the test task.
    """

    about: str
    pretrained: bool = False
    told: bool = False
    learns: bool = True


METHODS: Mapping[str, Method] = {
    "ppo": Method("PPO from scratch on the test task"),
    "sac": Method("SAC from scratch on the test task"),
    "finetuned": Method("PPO trained on all training tasks, then on the test task", pretrained=True),
    "recurrent-ppo": Method(
        "PPO with an LSTM, which remembers an episode, trained on all training tasks, then on the test task",
        pretrained=True,
    ),
    "oracle": Method(
        "PPO that observes the task, trained on all training tasks, as it is on the test task",
        pretrained=True,
        told=True,
        learns=False,
    ),
}


# Of runs on labelled shots: nothing of them is trained, and nothing adapts.
SHOT_METHODS: Mapping[str, str] = {
    "nearest-euclidean": "class of the support image whose pixels are nearest",
    "nearest-cosine": "class of the support image at the smallest angle",
    "prototypes": "nearest class mean in the features that the run's network has before adapting",
}


def unfit(name: str, spec: RLSpec, contrib: bool) -> str:
    """Say why a method does not fit a family, and what to do; empty where it does.

    Args:
        name: of the method.
        spec: of the family.
        contrib: whether sb3-contrib is installed.
    """
    if name in SHOT_METHODS:
        return f"it belongs to labelled shots; choose among {', '.join(METHODS)}"
    masked = spec.choices is not None and spec.choices.masked
    if name == "sac" and spec.choices is not None:
        return "SAC needs actions that are numbers, and this family's are choices"
    if name == "recurrent-ppo" and masked:
        return "its library has no recurrent policy with action masks, which this family has"
    if not contrib and (name == "recurrent-ppo" or masked):
        what = "action masks" if masked else "a recurrent policy"
        return f"{what} needs sb3-contrib: pip install -c constraints.txt -e '.[contrib]'"
    return ""
