"""Networks with a memory, which learn a task by reading it instead of by changing their parameters.

Shapes: M tasks, T steps of a sequence, E sequences of a task, N = T*E, I inputs, H units.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metarl.core.params import Params
from metarl.nets.activations import ACTIVATIONS
from metarl.nets.mlp import MLP
from metarl.nets.net import Net

_HEAD = "head."


@runtime_checkable
class Recurrent(Net, Protocol):
    """A :class:`~metarl.nets.net.Net` whose N inputs are whole sequences, the T steps of E sequences, step after step."""

    def stepper(self, params: Params) -> Callable[[Tensor], Tensor]:
        """Return a function that begins E sequences: called T times on (M, E, I), it returns (M, E, out) each time."""
        ...

    def memory(self, params: Params, inputs: Tensor) -> Tensor:
        """Return what the network remembers behind every input (M, N, I): (M, N, H)."""
        ...


def acting(net: Net, params: Params) -> Callable[[Tensor], Tensor]:
    """Return the function of inputs that acts: with a memory, one that remembers its own calls."""
    return net.stepper(params) if isinstance(net, Recurrent) else functools.partial(net, params)


@dataclass(frozen=True)
class GRU:
    r"""A layer of gated recurrent units, and a multilayer perceptron on what it remembers.

    $$ r = \sigma(W_r x + U_r h + b_r), \quad z = \sigma(W_z x + U_z h + b_z), \quad
       n = \tanh(W_n x + b_n + r \odot (U_n h + c_n)), \quad h' = n + z \odot (h - n) $$

    Every sequence begins with h = 0. Parameters: ``gru.input`` (I, 3H), ``gru.hidden`` (H, 3H), ``gru.input_bias`` and
    ``gru.hidden_bias`` (3H,), gates in the order r, z, n, as in :class:`torch.nn.GRU`; ``head.{i}.weight`` and
    ``head.{i}.bias``. Input weights are Xavier uniform, hidden ones orthogonal, $b_z = \log u$ with u uniform on [1, T]:
    some units forget at once, others not within the sequence.

    Rows of parameters that are equal, as they are where nothing adapts, are multiplied as one matrix. Gradients are those
    of each row. They are written by hand, and cannot be differentiated again: no inner rule may look through them twice.

    Attributes:
        inputs: I.
        units: H.
        sizes: of the perceptron behind the units, its outputs last.
        steps: T, the length of every sequence (shorter ones are padded behind their ends).
        activation: between the layers of the perceptron, ``"tanh"`` or ``"relu"``.

    Reference: Cho et al. (2014), arXiv:1406.1078, section 2.3, with the reset gate behind the product, as in cuDNN; start of
    $b_z$: Tallec and Ollivier (2018), arXiv:1804.11188, equation 16.

    Example:
        >>> net = GRU(inputs=2, units=4, sizes=(1,), steps=10)
        >>> params = {k: v.expand(3, *v.shape) for k, v in net.init(torch.Generator()).items()}
        >>> net(params, torch.zeros(3, 10 * 5, 2)).shape
        torch.Size([3, 50, 1])
    """

    inputs: int
    units: int
    sizes: tuple[int, ...]
    steps: int
    activation: str = "tanh"

    @property
    def head(self) -> MLP:
        """The perceptron behind the units."""
        return MLP((self.units, *self.sizes), self.activation)

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""
        bound = math.sqrt(6.0 / (self.inputs + self.units))
        square = functools.partial(torch.nn.init.orthogonal_, generator=generator)
        keeps = torch.zeros(3 * self.units)
        keeps[self.units : 2 * self.units] = (1 + (self.steps - 1) * torch.rand(self.units, generator=generator)).log()
        return {
            "gru.input": (torch.rand(self.inputs, 3 * self.units, generator=generator) * 2 - 1) * bound,
            "gru.hidden": torch.cat([square(torch.empty(self.units, self.units)) for _ in range(3)], 1),
            "gru.input_bias": keeps,
            "gru.hidden_bias": torch.zeros(3 * self.units),
            **{_HEAD + name: value for name, value in self.head.init(generator).items()},
        }

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map inputs (M, N, I) of whole sequences to outputs (M, N, out)."""
        return self.head(_headed(params), self.memory(params, inputs))

    def memory(self, params: Params, inputs: Tensor) -> Tensor:
        """Return h' behind every input, (M, N, H).

        Raises:
            ValueError: if the inputs are no whole sequences.
        """
        tasks, count, _ = inputs.shape
        if count % self.steps:
            raise ValueError(
                f"a recurrent network reads whole sequences of {self.steps} steps; {count} samples are none"
            )
        driven = torch.baddbmm(params["gru.input_bias"].unsqueeze(1), inputs, params["gru.input"])
        driven = driven.view(tasks, self.steps, count // self.steps, -1)
        states: Tensor = _Sequences.apply(driven, params["gru.hidden"], params["gru.hidden_bias"])  # type: ignore[no-untyped-call]
        return states.flatten(1, 2)

    def stepper(self, params: Params) -> Callable[[Tensor], Tensor]:
        """Return a function that remembers: inputs (M, E, I) to outputs (M, E, out), step after step."""
        headed, bias = _headed(params), params["gru.input_bias"].unsqueeze(1)
        product = _Product(params["gru.hidden"], params["gru.hidden_bias"])
        state: Tensor | None = None

        def step(inputs: Tensor) -> Tensor:
            nonlocal state
            state = inputs.new_zeros(*inputs.shape[:2], self.units) if state is None else state
            state = _cell(torch.baddbmm(bias, inputs, params["gru.input"]), state, product).state
            return self.head(headed, state)

        return step


def _headed(params: Params) -> Params:
    return {name.removeprefix(_HEAD): value for name, value in params.items() if name.startswith(_HEAD)}


class _Product:
    """x -> x W + b for x (M, E, H), W (M, H, K): one matrix product where all rows of W and b are equal."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        alike = bool((weight == weight[:1]).all()) and bool((bias == bias[:1]).all())
        self._weight, self._bias = (weight[:1], bias[:1]) if alike else (weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        if len(self._weight) == 1:
            return torch.addmm(self._bias[0], x.flatten(0, 1), self._weight[0]).view(*x.shape[:2], -1)
        return torch.baddbmm(self._bias.unsqueeze(1), x, self._weight)

    def back(self, gradient: Tensor) -> Tensor:
        """Multiply gradients (M, E, K) by the transpose of W: (M, E, H)."""
        weight = self._weight.transpose(1, 2)
        if len(weight) == 1:
            return (gradient.flatten(0, 1) @ weight[0]).view(*gradient.shape[:2], -1)
        return torch.bmm(gradient, weight)


class _Cell(NamedTuple):
    """One step: gates r and z side by side (M, E, 2H), candidate n, U_n h + c_n, and the new state, each (M, E, H)."""

    gates: Tensor
    candidate: Tensor
    recalled: Tensor
    state: Tensor


def _cell(driven: Tensor, state: Tensor, product: _Product) -> _Cell:
    """Step from states (M, E, H), driven by W x + b, (M, E, 3H)."""
    units = state.shape[-1]
    own = product(state)
    gates = torch.add(driven[..., : 2 * units], own[..., : 2 * units]).sigmoid_()
    recalled = own[..., 2 * units :].contiguous()  # a view would keep all of it
    candidate = ACTIVATIONS["tanh"](torch.addcmul(driven[..., 2 * units :], gates[..., :units], recalled))
    return _Cell(gates, candidate, recalled, torch.lerp(candidate, state, gates[..., units:]))


class _Sequences(torch.autograd.Function):
    """Run whole sequences from state 0: driven (M, T, E, 3H), hidden (M, H, 3H), bias (M, 3H) to states (M, T, E, H).

    Step by step everything is contiguous, and nothing is copied but at the ends: copies took three quarters of the time.
    """

    @staticmethod
    def forward(ctx: Any, driven: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
        tasks, steps, episodes, _ = driven.shape
        product, keep = _Product(hidden, bias), any(ctx.needs_input_grad)
        state, cells, states = driven.new_zeros(tasks, episodes, hidden.shape[1]), [], []
        for t in range(steps):
            cell = _cell(driven[:, t], state, product)
            state = cell.state
            states.append(state)
            if keep:
                cells.append(cell)
        ctx.product, ctx.cells = product, cells
        return torch.stack(states, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (given,), cells, product = gradients, ctx.cells, ctx.product
        units, flow = given.shape[-1], torch.zeros_like(given[:, 0])
        states = [torch.zeros_like(flow), *(cell.state for cell in cells)]
        of_driven, of_own = [], []
        for t in reversed(range(len(cells))):
            gates, candidate, recalled, _ = cells[t]
            reset, keep = gates[..., :units], gates[..., units:]
            flow = flow + given[:, t]
            # of the arguments of n, r and z, and of U_n h + c_n
            kept = flow * keep
            of_candidate = (flow - kept) * (1 - candidate.square())
            of_recalled = of_candidate * reset
            of_reset = of_recalled * recalled * (1 - reset)
            of_keep = kept * (states[t] - candidate) * (1 - keep)
            of_driven.append(torch.cat([of_reset, of_keep, of_candidate], -1))
            of_own.append(torch.cat([of_reset, of_keep, of_recalled], -1))
            flow = kept + product.back(of_own[-1])
        own, before = torch.stack(of_own[::-1], 1).flatten(1, 2), torch.stack(states[:-1], 1).flatten(1, 2)
        return torch.stack(of_driven[::-1], 1), torch.bmm(before.transpose(1, 2), own), own.sum(1)
