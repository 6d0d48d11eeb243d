"""Which network a configuration builds, how many tasks it differentiates at once, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import metarl
from metarl import families
from metarl.families import FamilyError
from metarl.fewshot import ShotDomain, executors
from metarl.fewshot.executors import tasks_at_once
from metarl.nets import MLP, ContextNet, Conv4, Flat, from_module
from metarl.run.arguments import check
from metarl.settings import SettingsError


@pytest.fixture
def images(patterns, monkeypatch):
    """The toy family as ``env=patterns``."""
    monkeypatch.setattr(families, "_registered", {**families._registered, "patterns": patterns})
    return "patterns"


def test_images_get_a_convolutional_network(images):
    """Whose settings are the run's; on the CPU it takes tasks of few images together, or as many as it is told."""
    settings = {"filters": 8, "downsampling": "stride", "normalization": "support"}
    learner = metarl.build(images, threads=1, **settings)
    assert learner.domain.net == Conv4((1, 8, 8), 3, 8, "stride", "support")
    assert learner.domain.protocol == "support normalisation"
    assert learner.chunk_tasks == learner.domain.chunk_tasks == 80 // 18
    learner = metarl.build(images, threads=1, chunk_tasks=3, **settings)
    assert learner.chunk_tasks == learner.domain.chunk_tasks == 3
    assert metarl.build("sinusoid", threads=1).chunk_tasks is None, "an MLP's tasks are many to a chunk"


@pytest.mark.parametrize(("network", "algo"), [("mlp", "maml-adam"), ("auto", "cavia-adam"), ("mlp", "cavia-adam")])
def test_images_may_be_vectors(images, network, algo):
    """An MLP sees an image's numbers in a row; a context can only stand beside a vector."""
    learner = metarl.build(images, algo, threads=1, network=network, hidden_sizes=(5,), meta_batch_size=2)
    assert isinstance(learner.domain.net, Flat)
    assert isinstance(learner.domain.net.net, ContextNet if algo == "cavia-adam" else MLP)
    assert learner.domain.protocol == ""
    _, metrics = learner.iteration(learner.init(0))
    assert np.isfinite(metrics["loss"])


def test_anil_adapts_the_head_alone(images):
    learner = metarl.build(images, "anil-adam", threads=1, filters=4, meta_batch_size=2)
    state = learner.init(0)
    trail = learner.explore(state.meta, learner.domain.sample_tasks(2, "test", (0,)), (0, 0), 1)
    moved = {name for name, value in trail.params.items() if not torch.equal(value[0], state.meta[name])}
    assert moved == {"head.weight", "head.bias"}


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_gpu_takes_as_many_tasks_as_its_images_allow():
    """At 20 ways and 15 queries a task has a quarter of the images of 20 ways and 75."""
    net = Conv4((1, 8, 8), 3, 4)
    assert tasks_at_once(net, 320, GPU) == executors.GPU_IMAGES // 320 == 51
    assert tasks_at_once(net, 100_000, GPU) == 1


def test_on_the_cpu_small_tasks_are_groups_and_larger_ones_a_loop():
    """Bigger images, and pooling, which keeps four times as many positions, count as more of them; shared filters as half."""
    strided = Conv4((1, 28, 28), 3, 4)
    assert [tasks_at_once(strided, images, CPU) for images in (10, 40, 80, 1000)] == [8, 2, 1, 1]
    assert [tasks_at_once(strided, images, CPU, shared=True) for images in (10, 80, 1000)] == [16, 2, 1]
    assert tasks_at_once(Conv4((1, 28, 28), 3, 4, "pool"), 10, CPU) == 2
    assert tasks_at_once(Conv4((3, 56, 56), 3, 4), 10, CPU) == 2
    assert tasks_at_once(Conv4((1, 8, 8), 3, 4), 10, CPU) == 8


def test_modules_that_convolve_loop_and_vectors_are_one_batch():
    """A module of torch's own is looked into."""
    module = from_module(nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3)), nn.Flatten(), nn.Linear(144, 3)))
    assert (tasks_at_once(module, 10, CPU), tasks_at_once(module, 16384, GPU)) == (1, 1)
    for net in (MLP((2, 3)), Flat(MLP((64, 3))), from_module(nn.Linear(2, 1))):
        assert tasks_at_once(net, 10, CPU) is tasks_at_once(net, 10, GPU) is None


def test_the_learner_takes_the_executor_of_its_rule(images):
    """18 images to a task: 8 tasks are a batch where the last layer alone adapts, and 4 otherwise, and where they are judged."""
    for algo, settings, wanted in (
        ("maml-adam", {}, 80 // 18),
        ("anil-adam", {}, 160 // 18),
        ("anil-adam", {"adapt": ("3.*", "head")}, 80 // 18),
        ("imaml-adam", {}, 80 // 18),
    ):
        learner = metarl.build(images, algo, threads=1, filters=4, algo_settings=settings)
        assert (learner.chunk_tasks, learner.domain.chunk_tasks) == (wanted, 80 // 18)


REFUSED = [
    (
        "env=patterns hidden_sizes=[8]",
        "hidden_sizes=(8,) has no meaning with env=patterns algo=maml-adam: its network is network=conv4",
    ),
    ("env=patterns activation=relu", "use filters=, or network=mlp"),
    (
        "env=patterns network=mlp filters=8",
        "filters=8 has no meaning with env=patterns algo=maml-adam: its network is network=mlp",
    ),
    ("env=patterns algo=cavia-adam normalization=group", "normalization=group has no meaning"),
    (
        "env=patterns algo=cavia-adam network=conv4",
        "network=conv4 has no context for algo=cavia-adam to adapt; use network=mlp",
    ),
    ("env=sinusoid network=conv4", "network=conv4 takes images, and env=sinusoid has vectors"),
    ("env=sinusoid downsampling=pool", "downsampling=pool has no meaning with env=sinusoid"),
    ("env=navigation-2d network=conv4", "network=conv4 takes images, and env=navigation-2d has vectors"),
    ("env=navigation-2d filters=8", "filters=8 has no meaning with env=navigation-2d algo=maml-trpo"),
    ("env=patterns normalization=batch", "normalization=batch is not one of transductive, support, task, group, none"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_settings_of_another_network_are_refused(images, line, message):
    """Catches a setting that is taken and does nothing."""
    with pytest.raises(SettingsError) as caught:
        check(line.split())
    assert message in str(caught.value)


FLAWS = {
    "rows beyond": "Flawed: support rows of task {'class0': .*} are not all within 0 to 479",
    "classes beyond": "Flawed: query targets of task {'class0': .*} are not all within 0 to 2",
    "half rows": r"Flawed: support rows are float64, not whole numbers",
    "unequal": r"Flawed: query targets have shape \(2, 11\), not \(2, 'N'\)",
    "float pool": r"Flawed: its pool is not a uint8 array of shape \('P', 1, 8, 8\)",
    "no pool": "Flawed failed loading examples: ZeroDivisionError: gone",
    "pick raises": "Flawed failed drawing examples of 2 tasks: ZeroDivisionError: out of ink",
}


@pytest.mark.parametrize(("flaw", "message"), FLAWS.items(), ids=FLAWS)
def test_a_broken_pool_is_named_in_one_line(patterns, flaw, message):
    """Rows beyond the pool would end in an IndexError, or on a GPU in a dead process."""

    class Flawed(patterns):
        def pool(self):
            if flaw == "no pool":
                raise ZeroDivisionError("gone")
            return super().pool() / 1.0 if flaw == "float pool" else super().pool()

        def pick(self, tasks, seeds):
            if flaw == "pick raises":
                raise ZeroDivisionError("out of ink")
            support, query = super().pick(tasks, seeds)
            if flaw == "rows beyond":
                support.rows[1, 0] = 480
            if flaw == "classes beyond":
                query.targets[0, 3] = 3
            if flaw == "half rows":
                support = support._replace(rows=support.rows + 0.5)
            if flaw == "unequal":
                query = query._replace(targets=query.targets[:, :-1])
            return support, query

    domain = ShotDomain(Flawed(), Conv4((1, 8, 8), 3, 4))
    with pytest.raises(FamilyError, match=message):
        domain.draw(domain.sample_tasks(2, "train", (0,)), np.arange(2, dtype=np.uint32))
