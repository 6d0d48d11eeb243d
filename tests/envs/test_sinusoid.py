"""Sinusoid regression against its formula."""

from __future__ import annotations

import numpy as np
import pytest

from metarl import families
from metarl.families import SPLITS, Tasks, split_of


def test_targets_are_amplitude_times_sine_of_x_minus_phase():
    """A phase of the wrong sign still gives sine waves, but other tasks than the paper's."""
    family = families.make("sinusoid", shots=4, queries=6)
    tasks = Tasks(("amplitude", "phase"), np.array([[2.0, np.pi / 2], [0.5, 0.25]]))
    support, query = family.draw(tasks, np.array([1, 2], dtype=np.uint32))
    assert support.inputs.shape == support.targets.shape == (2, 4, 1)
    assert query.inputs.shape == query.targets.shape == (2, 6, 1)
    for shots in (support, query):
        for x, y, (amplitude, phase) in zip(shots.inputs, shots.targets, tasks.values, strict=True):
            expected = amplitude * (np.sin(x) * np.cos(phase) - np.cos(x) * np.sin(phase))
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_inputs_are_uniform_on_minus_5_to_5():
    family = families.make("sinusoid", shots=2000, queries=1)
    support, _ = family.draw(family.sample_tasks(3, "train", 0), np.arange(3, dtype=np.uint32))
    counts, _ = np.histogram(support.inputs, bins=10, range=(-5.0, 5.0))
    assert counts.sum() == 6000
    assert counts.min() > 480  # 600 expected, sd 23
    assert len(np.unique(support.inputs[:, 0])) == 3


def test_an_oracle_is_told_the_wave_and_sees_the_same_points():
    """Catches amplitude and phase of another task or in the other order, and other points than those of the learners."""
    plain, oracle = (families.make("sinusoid", shots=4, queries=6, oracle=told) for told in (False, True))
    tasks, seeds = plain.sample_tasks(3, "test", 0), np.arange(3, dtype=np.uint32)
    assert oracle.spec.input_shape == (3,)
    for ours, theirs in zip(plain.draw(tasks, seeds), oracle.draw(tasks, seeds), strict=True):
        np.testing.assert_array_equal(ours.targets, theirs.targets)
        np.testing.assert_array_equal(ours.inputs, theirs.inputs[..., :1])
        x, amplitude, phase = np.moveaxis(theirs.inputs, 2, 0)
        np.testing.assert_allclose(amplitude * np.sin(x - phase), theirs.targets[..., 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_cover_the_papers_ranges_and_belong_to_their_split(split):
    tasks = families.make("sinusoid").sample_tasks(2000, split, 1)
    amplitude, phase = tasks["amplitude"], tasks["phase"]
    assert 0.1 <= amplitude.min() < 0.2
    assert 4.9 < amplitude.max() < 5.0
    assert 0.0 <= phase.min() < 0.02
    assert np.pi - 0.02 < phase.max() < np.pi
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 0.1
    assert {split_of(a) for a in (amplitude - 0.1) / 4.9} == {split}
