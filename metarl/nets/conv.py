"""The four-layer convolutional network of few-shot learning, batched over tasks by grouped convolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from metarl.core.params import Params
from metarl.nets import normalization as norm
from metarl.nets.convolution import convolved, once

DOWNSAMPLINGS = ("stride", "pool")


@dataclass(frozen=True)
class Conv4:
    """Four times 3x3 convolution, normalisation, ReLU, and half the size; then one linear layer, the head.

    The tasks of a batch are groups of one convolution, which for a single task, or where all share their filters, is an ordinary
    convolution. It is batched over tasks by itself, and not for transforms of ``torch.func``. Parameters of
    block i are ``{i}.weight`` (F, in, 3, 3), ``{i}.gamma`` and ``{i}.beta`` (F,) (see :mod:`metarl.nets.normalization`; without
    it ``{i}.bias`` (F,) instead: a bias that a batch mean removes would be moved by nothing but rounding); of the head
    ``head.weight`` (features, outputs) and ``head.bias`` (outputs,). They start as torch's own layers do, uniform within
    1 / sqrt(inputs of a unit).

    Attributes:
        input_shape: channels, height and width of an image.
        outputs: O, numbers to predict.
        filters: F, channels of every block.
        downsampling: ``"stride"`` (the convolutions take every second position; the features are means over positions, F
            of them) or ``"pool"`` (2x2 maxima; the features are all that is left, F at 28x28, 25 F at 84x84).
        normalization: one of ``transductive``, ``support``, ``task``, ``group``, ``none``.
        blocks: how many blocks there are.
        channels_last: whether maps keep their channels side by side in a CPU's memory, where there is one row of filters. The
            result is the same. With ``transductive`` statistics, 75 images of 28x28 and their gradient take two thirds of the
            time; the gradient of a gradient takes 15 % longer (measured with PyTorch 2.13).

    Raises:
        ValueError: for an unknown option, images too small to be halved four times, or groups of a single number.

    Reference: Vinyals et al. (2016), arXiv:1606.04080, section 4.1; Finn et al. (2017), arXiv:1703.03400, section 5.2 and its
    code (strides and means over positions for Omniglot).

    Example:
        >>> net = Conv4((1, 28, 28), 5, filters=8)
        >>> params = {k: v.expand(3, *v.shape) for k, v in net.init(torch.Generator()).items()}
        >>> net(params, torch.zeros(3, 10, 1, 28, 28)).shape
        torch.Size([3, 10, 5])
    """

    input_shape: tuple[int, int, int]
    outputs: int
    filters: int = 64
    downsampling: str = "stride"
    normalization: str = "transductive"
    blocks: int = 4
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        for name, options in (("downsampling", DOWNSAMPLINGS), ("normalization", norm.NORMALIZATIONS)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}, got '{getattr(self, name)}'")
        if min(self._size) < 1:
            least = 2**self.blocks if self.downsampling == "pool" else 1
            height, width = self.input_shape[1:]
            raise ValueError(
                f"images of {height}x{width} are too small to be halved {self.blocks} times: {least} at least"
            )

        alone = norm.grouped(self.filters) == self.filters and self._size == (1, 1) and self.downsampling == "stride"
        if self.normalization == "group" and alone:
            raise ValueError(
                "normalization=group has groups of a single number in the last layer, which would all be 0; use more filters or"
                " larger images"
            )

    @property
    def features(self) -> int:
        """Numbers that the head sees."""
        return self.filters * (1 if self.downsampling == "stride" else self._size[0] * self._size[1])

    @property
    def refers(self) -> bool:
        """Whether predictions for queries depend on the support set."""
        return norm.refers(self.normalization)

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh parameters."""

        def uniform(fan_in: int, *shape: int) -> Tensor:
            return (torch.rand(*shape, generator=generator) * 2 - 1) * fan_in**-0.5

        params: Params = {}
        for block in range(self.blocks):
            channels = self.filters if block else self.input_shape[0]
            params[f"{block}.weight"] = uniform(9 * channels, self.filters, channels, 3, 3)
            if self.normalization == "none":
                params[f"{block}.bias"] = uniform(9 * channels, self.filters)
            own = norm.fresh(self.normalization, self.filters)
            params |= {f"{block}.{name}": value for name, value in own.items()}
        params["head.weight"] = uniform(self.features, self.features, self.outputs)
        params["head.bias"] = uniform(self.features, self.outputs)
        return params

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Map images (M, N, channels, height, width) to outputs (M, N, O); the images are their own support set."""
        return self.last(params, self.body(params, inputs, None))

    def relative(self, params: Params, inputs: Tensor, reference: Tensor) -> Tensor:
        """Map queries (M, N, ...) to outputs (M, N, O), normalised with the help of support images ``reference`` (M, S, ...)."""
        return self.last(params, self.body(params, inputs, reference))

    @property
    def adaptable(self) -> tuple[str, ...]:
        """The head's parameters."""
        return "head.weight", "head.bias"

    def body(self, params: Params, inputs: Tensor, reference: Tensor | None) -> Tensor:
        """Map images to features (M, N, features), statistics being each task's own; one row of parameters serves all tasks."""
        if reference is not None:
            return self._features(params, torch.cat([reference, inputs], 1), reference.shape[1])[
                :, reference.shape[1] :
            ]
        return self._features(params, inputs, inputs.shape[1])

    def last(self, params: Params, features: Tensor) -> Tensor:
        """Map features (M, N, features) to outputs (M, N, O)."""
        return torch.baddbmm(params["head.bias"].unsqueeze(1), features, params["head.weight"])

    def _features(self, params: Params, inputs: Tensor, reference: int) -> Tensor:
        tasks, examples = inputs.shape[:2]
        one_batch = self._one_batch(params, inputs)
        if one_batch:
            x = inputs.flatten(0, 1).to(memory_format=torch.channels_last)  # which convolutions hand on
        else:
            x = inputs.transpose(0, 1).flatten(1, 2)  # (N, M*C, H, W): the channels of all tasks side by side
        stride = 2 if self.downsampling == "stride" else 1
        for block in range(self.blocks):
            own = dict(_under(params, f"{block}."))
            x = _convolved(x, own, 1 if one_batch else tasks, stride, not self.channels_last)
            if one_batch and tasks == 1 and self.normalization == "transductive":
                x = norm.normalized_rectified(x, own)
            elif one_batch and tasks > 1:
                x = functional.relu(norm.normalized_by_task(x, own, tasks), inplace=True)
            else:
                own = {name: value.expand(tasks, -1) for name, value in own.items() if value.dim() == 2}
                x = functional.relu(norm.normalized(self.normalization, x, own, reference), inplace=True)
            x = x if stride == 2 else functional.max_pool2d(x, 2)
        x = x.mean((2, 3)) if stride == 2 else x
        return x.reshape(tasks, examples, -1) if one_batch else x.reshape(examples, tasks, -1).transpose(0, 1)

    def _one_batch(self, params: Params, inputs: Tensor) -> bool:
        """Tell whether all tasks' examples are one batch (M*N, C, H, W), with the channels last in memory."""
        shared = (
            len(params["0.weight"]) == 1 and not params["0.weight"].requires_grad
        )  # with a gradient it takes longer
        fits = len(inputs) == 1 or (shared and self.normalization == "transductive")
        return self.channels_last and fits and inputs.device.type == "cpu"

    @property
    def _size(self) -> tuple[int, int]:
        """Height and width after the last block."""
        height, width = self.input_shape[1:]
        for _ in range(self.blocks):
            up = 1 if self.downsampling == "stride" else 0
            height, width = (height + up) // 2, (width + up) // 2
        return height, width


def _convolved(x: Tensor, own: Params, tasks: int, stride: int, twice: bool) -> Tensor:
    """Convolve maps (N, M*C, H, W) with filters of M rows, as groups, or of one row, which all tasks share as one batch.

    ``twice`` says that a gradient of the gradient is likely.
    """
    groups = len(own["weight"])
    bias = own["bias"].flatten() if "bias" in own else None
    maps = x if groups == tasks else x.reshape(-1, x.shape[1] * groups // tasks, *x.shape[2:])
    maps = (convolved if twice else once)(maps, own["weight"].flatten(0, 1), bias, stride, groups)
    return maps if groups == tasks else maps.reshape(len(x), -1, *maps.shape[2:])


def _under(params: Params, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of one block by their own names."""
    return ((name.removeprefix(prefix), value) for name, value in params.items() if name.startswith(prefix))
