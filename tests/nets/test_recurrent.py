"""Recurrent networks against a slow loop over scalars, torch's own cell, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from metarl.core.params import Params
from metarl.nets import GRU, MLP, Recurrent
from metarl.nets.recurrent import acting

M, T, E, INPUTS, UNITS = 2, 6, 3, 2, 4
NET = GRU(INPUTS, UNITS, (5, 3), T)


def _given(different=True) -> tuple[Params, torch.Tensor]:
    """Parameters in float64, of every task its own where they are to differ, and inputs (M, T*E, I)."""
    g = torch.Generator().manual_seed(7)
    fresh = {name: value.double() for name, value in NET.init(g).items()}
    params = {name: value.expand(M, *value.shape).clone() for name, value in fresh.items()}
    noise = {name: torch.randn(value.shape, generator=g, dtype=torch.float64) for name, value in params.items()}
    inputs = torch.randn(M, T * E, INPUTS, generator=g, dtype=torch.float64)
    return ({n: v + 0.3 * noise[n] for n, v in params.items()} if different else params), inputs


def _sigma(x):
    return 1 / (1 + math.exp(-x))


def _by_hand(params, m, sequence):
    """One sequence (T, I) of task m, number by number: what is remembered behind every step."""
    weights, own = params["gru.input"][m].tolist(), params["gru.hidden"][m].tolist()
    bias, shift = params["gru.input_bias"][m].tolist(), params["gru.hidden_bias"][m].tolist()
    h, remembered = [0.0] * UNITS, []
    for x in sequence.tolist():
        driven = [bias[k] + sum(x[i] * weights[i][k] for i in range(INPUTS)) for k in range(3 * UNITS)]
        recalled = [shift[k] + sum(h[i] * own[i][k] for i in range(UNITS)) for k in range(3 * UNITS)]
        new = []
        for u in range(UNITS):
            reset, keep = _sigma(driven[u] + recalled[u]), _sigma(driven[UNITS + u] + recalled[UNITS + u])
            candidate = math.tanh(driven[2 * UNITS + u] + reset * recalled[2 * UNITS + u])
            new.append((1 - keep) * candidate + keep * h[u])
        h = new
        remembered.append(h)
    return torch.tensor(remembered, dtype=torch.float64)


@pytest.mark.parametrize("different", [True, False], ids=["every task its own", "all tasks alike"])
def test_whole_sequences_are_what_a_loop_over_numbers_gives(different):
    """Catches a gate in another's place, sequences or tasks that are mixed, and a start that is not 0."""
    params, inputs = _given(different)
    remembered = NET.memory(params, inputs).view(M, T, E, UNITS)
    outputs = NET(params, inputs).view(M, T, E, 3)
    for m in range(M):
        for e in range(E):
            expected = _by_hand(params, m, inputs.view(M, T, E, INPUTS)[m, :, e])
            torch.testing.assert_close(remembered[m, :, e], expected)
            hidden = torch.tanh(expected @ params["head.0.weight"][m] + params["head.0.bias"][m])
            torch.testing.assert_close(
                outputs[m, :, e], hidden @ params["head.1.weight"][m] + params["head.1.bias"][m], rtol=1e-6, atol=1e-7
            )


@pytest.mark.parametrize("different", [True, False], ids=["every task its own", "all tasks alike"])
def test_acting_step_by_step_gives_what_reading_the_sequence_gives(different):
    """Catches a memory that is not carried, carried too far (a second actor begins anew), or read one step late."""
    params, inputs = _given(different)
    outputs, steps = NET(params, inputs).view(M, T, E, 3), inputs.view(M, T, E, INPUTS)
    for _ in range(2):
        act = acting(NET, params)
        acted = torch.stack([act(steps[:, t]) for t in range(T)], 1)
        torch.testing.assert_close(acted, outputs)


def test_it_is_torchs_own_layer():
    """The reference says so, and weights can be taken over."""
    params, inputs = _given()
    layer = torch.nn.GRU(INPUTS, UNITS).double()
    names = {"weight_ih_l0": "gru.input", "weight_hh_l0": "gru.hidden"}
    names |= {"bias_ih_l0": "gru.input_bias", "bias_hh_l0": "gru.hidden_bias"}
    for m in range(M):
        weights = {
            own: params[ours][m].T if params[ours].dim() == 3 else params[ours][m] for own, ours in names.items()
        }
        expected, _ = torch.func.functional_call(layer, weights, (inputs[m].view(T, E, INPUTS),))
        torch.testing.assert_close(NET.memory(params, inputs)[m], expected.flatten(0, 1))


@pytest.mark.parametrize("different", [True, False], ids=["every task its own", "all tasks alike"])
def test_gradients_are_slopes_and_each_rows_own(different):
    """Catches a wrong pull through a gate, and rows whose gradients land in another: no loss of task 0 moves task 1."""
    params, inputs = _given(different)
    leaves = [value.clone().requires_grad_() for value in params.values()]
    seen = inputs.clone().requires_grad_()

    def read(x, *values):
        return NET(dict(zip(params, values, strict=True)), x)

    assert torch.autograd.gradcheck(read, (seen, *leaves))
    gradients = torch.autograd.grad(read(seen, *leaves)[0].square().sum(), leaves)
    assert all(bool(g[0].any()) and not g[1].any() for g in gradients)


def test_gradients_of_gradients_are_refused_and_not_wrong():
    """An inner rule that looks through the memory twice must not get zeros."""
    params, inputs = _given()
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    loss = NET(leaves, inputs).square().sum()
    (gradient,) = torch.autograd.grad(loss, leaves["gru.hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_samples_that_are_no_whole_sequences_are_refused():
    """Some of the states of a sequence would be read as another sequence."""
    params, inputs = _given()
    with pytest.raises(ValueError, match="whole sequences of 6 steps; 17 samples are none"):
        NET(params, inputs[:, 1:])


def test_some_units_forget_at_once_and_some_never():
    """Catches a bias at another gate: after one step of nothing, a unit keeps u / (1 + u), u on [1, T]."""
    params = {name: value.unsqueeze(0) for name, value in GRU(1, 500, (1,), 100).init(torch.Generator()).items()}
    keeps = torch.sigmoid(params["gru.input_bias"][0, 500:1000])
    times = keeps / (1 - keeps)
    assert (times.min() >= 0.99, times.max() <= 100.1) == (True, True)
    assert times.mean().item() == pytest.approx(50.5, abs=5 * 99 / math.sqrt(12 * 500))
    assert not params["gru.input_bias"][0, :500].any()


def test_only_a_memory_is_recurrent():
    assert isinstance(NET, Recurrent)
    assert not isinstance(MLP((2, 3)), Recurrent)
