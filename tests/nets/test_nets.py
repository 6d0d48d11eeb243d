"""The hand-batched network and any module agree; one row, one task; threads do not meet in a module. Float64."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from metarl.core import GradientStep, Objective, Terms, Workers
from metarl.nets import MLP, from_module
from metarl.nets.activations import tanh

M, N = 4, 7


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@dataclass(frozen=True)
class Points:
    """Inputs and targets."""

    x: Tensor
    y: Tensor

    @property
    def num_tasks(self):
        return len(self.x)

    @property
    def num_samples(self):
        return self.x.shape[1]

    def rows(self, tasks):
        return Points(self.x[tasks], self.y[tasks])

    def samples(self, index):
        return Points(self.x[:, index], self.y[:, index])


@dataclass(frozen=True)
class Query:
    loss: object
    geometry: None = None

    def __call__(self, params, query):
        return Terms(self.loss(params, query), None)


def _objective(net, shape=(3,), workers=None, chunk=None, outputs=2):
    support, query = (Points(_draw(M, N, *shape, seed=s), _draw(M, N, outputs, seed=s + 1)) for s in (1, 3))

    def loss(params, points):
        return (net(params, points.x) - points.y).square().mean((1, 2))

    return Objective(GradientStep(loss, 0.3), [support], query, Query(loss), workers or Workers(1), chunk)


def _sequential(activation):
    layers = [nn.Linear(3, 8), activation(), nn.Linear(8, 5), activation(), nn.Linear(5, 2)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(("name", "activation"), [("tanh", nn.Tanh), ("relu", nn.ReLU)])
def test_module_and_mlp_agree_in_values_and_meta_gradients(name, activation, vectorize):
    """Copied weights (a Linear keeps them transposed): forward, loss and second-order meta-gradient."""
    ours, theirs = MLP((3, 8, 5, 2), name), from_module(_sequential(activation), vectorize)
    start = ours.init(torch.Generator().manual_seed(0))
    meta = {k: v.double() + 0.3 * _draw(*v.shape, seed=9) for k, v in start.items()}
    copied = {}
    for layer in range(3):
        copied[f"{2 * layer}.weight"] = meta[f"{layer}.weight"].T.contiguous()
        copied[f"{2 * layer}.bias"] = meta[f"{layer}.bias"]
    assert copied.keys() == theirs.init(torch.Generator()).keys()

    tasks, mine = ({k: v + 0.1 * _draw(M, *v.shape, seed=5) for k, v in meta.items()} for _ in range(2))
    rows = {f"{2 * i}.{part}": (v.transpose(1, 2) if part == "weight" else v)
            for k, v in tasks.items() for i, part in [(int(k.split(".")[0]), k.split(".")[1])]}  # fmt: skip
    inputs = _draw(M, N, 3, seed=6)
    torch.testing.assert_close(theirs(rows, inputs), ours(mine, inputs), rtol=1e-12, atol=1e-13)

    value, gradient = _objective(ours).gradient(meta)
    their_value, their_gradient = _objective(theirs).gradient(copied)
    assert value.loss == pytest.approx(their_value.loss, rel=1e-12)
    for layer in range(3):
        for part in ("weight", "bias"):
            mine, other = gradient[f"{layer}.{part}"], their_gradient[f"{2 * layer}.{part}"]
            torch.testing.assert_close(other.T if part == "weight" else other, mine, rtol=1e-10, atol=1e-12)


def test_every_row_uses_its_own_parameters_and_inputs():
    """A broadcast over the wrong dimension would mix tasks."""
    net = MLP((3, 4, 2))
    params = {k: _draw(M, *v.shape, seed=2) for k, v in net.init(torch.Generator()).items()}
    inputs = _draw(M, N, 3)
    whole = net(params, inputs)
    for m in range(M):
        hidden = torch.tanh(inputs[m] @ params["0.weight"][m] + params["0.bias"][m])
        expected = hidden @ params["1.weight"][m] + params["1.bias"][m]
        torch.testing.assert_close(whole[m], expected, rtol=1e-12, atol=1e-13)


def test_a_standard_deviation_replaces_xaviers():
    """The MAML paper's regression starts from small weights, which decides how many updates its result survives."""
    params = MLP((400, 300, 1), std=0.01).init(torch.Generator().manual_seed(0))
    weight = params["0.weight"]
    # a normal distribution cut at two deviations has 0.8796 of the deviation (1 - 4 phi(2) / (2 Phi(2) - 1), its square root)
    assert float(weight.std()) == pytest.approx(0.01 * 0.8796, rel=0.01)
    assert float(weight.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(weight.abs().max()) <= 0.02
    assert float(params["0.bias"].abs().max()) == 0
    again = MLP((400, 300, 1), std=0.01).init(torch.Generator().manual_seed(0))
    assert torch.equal(weight, again["0.weight"])


def test_initialisation_is_xavier_uniform_with_zero_biases_and_the_generators():
    """Bound sqrt(6 / (in + out)); the same generator gives the same values."""
    net = MLP((50, 200, 2))
    params = net.init(torch.Generator().manual_seed(4))
    again = net.init(torch.Generator().manual_seed(4))
    assert all(torch.equal(params[n], again[n]) for n in params)
    bound = (6 / 250) ** 0.5
    weight = params["0.weight"]
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert abs(weight.mean()) < 0.01 * bound * 3
    assert not params["0.bias"].any()


class LastStep(nn.Module):
    """A recurrent layer over sequences (N, T, 3) whose last output (N, 2) is the answer."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(3, 2, batch_first=True).double()

    def forward(self, x):
        return self.layer(x)[0][:, -1]


class Slow(nn.Linear):
    """A layer during whose call another thread gets its turn."""

    def forward(self, x):
        time.sleep(0.001)
        return super().forward(x)


@pytest.mark.parametrize("vectorize", [True, False])
def test_threads_do_not_meet_in_a_module(vectorize):
    """``functional_call`` puts parameters *into* the module while it runs: two threads in one module use each other's,
    and leave them behind."""
    module = nn.Sequential(Slow(3, 8), nn.Tanh(), Slow(8, 2)).double()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    net = from_module(module, vectorize)
    meta = net.init(torch.Generator())
    _, expected = _objective(net, chunk=1).gradient(meta)
    workers = Workers(2)
    for _ in range(5):
        _, gradient = _objective(net, workers=workers, chunk=1).gradient(meta)
        assert all(torch.equal(gradient[n], expected[n]) for n in expected)
    assert all(isinstance(value, nn.Parameter) for value in module.parameters())
    assert all(torch.equal(value.detach(), before[n]) for n, value in module.named_parameters())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_modules_work_without_being_told_how(kind):
    """vmap has no rule for fused recurrent layers ("Batching rule not implemented for aten::lstm.input")."""
    module = LastStep(kind)
    net, looped = from_module(module), from_module(module, vectorize=False)
    meta = net.init(torch.Generator())
    _, gradient = _objective(net, (4, 3)).gradient(meta)
    _, expected = _objective(looped, (4, 3)).gradient(meta)
    for name in expected:
        torch.testing.assert_close(gradient[name], expected[name], rtol=1e-12, atol=1e-13)
        assert bool(expected[name].any()), f"{name} is not used"


def test_fast_tanh_without_a_graph_is_the_same_and_leaves_its_argument():
    """An in-place short cut that overwrites what the caller still needs, or other bits than those of training."""
    x = torch.linspace(-9, 9, 101)
    before = x.clone()
    with torch.no_grad():
        quick = tanh(x)
    assert torch.equal(quick, tanh(x.clone().requires_grad_()).detach())
    assert torch.equal(x, before)


@pytest.mark.parametrize("how", [{}, {"vectorize": False}], ids=["default", "looped"])
def test_a_module_with_buffers_is_called_and_never_changed(how):
    """Running statistics that move make the second evaluation of the same parameters another one."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    net = from_module(module, **how)
    meta = net.init(torch.Generator())
    first, second = (_objective(net).value(meta) for _ in range(2))
    assert first == second
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_tuple_output_means_its_first_entry_and_init_copies():
    module = nn.GRU(3, 2, batch_first=True).double()
    net = from_module(module, vectorize=False)
    meta = net.init(torch.Generator())
    params = {n: v.expand(2, *v.shape).contiguous() for n, v in meta.items()}
    x = _draw(2, N, 4, 3)
    torch.testing.assert_close(net(params, x)[1], module(x[1])[0], rtol=1e-12, atol=1e-13)
    for value in meta.values():
        value.zero_()
    assert all(bool(value.any()) for value in module.parameters())


def test_fast_tanh_is_tanh_with_all_its_derivatives():
    """Value against torch's; first, second and forward derivatives against finite differences."""
    x = torch.linspace(-20, 20, 1001, dtype=torch.double)
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=0, atol=1e-15)
    torch.testing.assert_close(tanh(x.float()), torch.tanh(x.float()), rtol=0, atol=2.5e-7)
    point = torch.tensor([-3.0, -0.2, 0.0, 1e-3, 2.0], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(tanh, (point,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(tanh, (point,))
