"""The convolutional network as torch's own layers, to be trained in the ordinary way, and back.

Ordinary training normalises by batch statistics and remembers running ones, which it normalises by afterwards. Constant statistics
are a part of the convolution: :meth:`Backbone.folded` puts them there, and what is left is a network without normalisation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarl.core.params import Params
from metarl.nets import Conv4
from metarl.nets.normalization import EPS


@dataclass(frozen=True)
class Backbone:
    """All of a :class:`~metarl.nets.Conv4` but its head, as modules: images (N, channels, height, width) to features (N, F).

    Attributes:
        net: the network.
        body: the modules in their order; in ``train()`` mode it normalises by the batch, in ``eval()`` mode by running statistics.
    """

    net: Conv4
    body: nn.Sequential

    @staticmethod
    def of(net: Conv4, generator: torch.Generator) -> Backbone:
        """Return fresh modules, drawn as the network draws its parameters."""
        drawn, stride = net.init(generator), 2 if net.downsampling == "stride" else 1
        layers: list[nn.Module] = []
        for block in range(net.blocks):
            channels = net.filters if block else net.input_shape[0]
            conv = nn.Conv2d(channels, net.filters, 3, stride, padding=1, bias=False)
            conv.weight.data.copy_(drawn[f"{block}.weight"])
            layers += [conv, nn.BatchNorm2d(net.filters, eps=EPS), nn.ReLU()]
            layers += [] if stride == 2 else [nn.MaxPool2d(2)]
        layers += [nn.AdaptiveAvgPool2d(1)] if stride == 2 else []
        return Backbone(net, nn.Sequential(*layers, nn.Flatten()))

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features."""
        return self.body(images)

    def embedding(self, normalization: str) -> tuple[Conv4, Params]:
        """Return the network whose outputs are the features, with its parameters.

        Args:
            normalization: ``transductive`` or ``support``; ``running`` normalises by the statistics of training.
        """
        kind = "none" if normalization == "running" else normalization
        net = dataclasses.replace(self.net, normalization=kind, outputs=self.net.features)
        like = next(self.body.parameters())
        head = {
            "head.weight": torch.eye(net.features, dtype=like.dtype, device=like.device),
            "head.bias": like.new_zeros(net.features),
        }
        return net, (self.folded() if kind == "none" else self._layers()) | head

    def folded(self) -> Params:
        r"""Return weights and biases of convolutions that normalise by the running statistics $\mu, \sigma^2$.

        $$ \hat w = s w, \qquad \hat b = \beta - s \mu, \qquad s = \gamma / \sqrt{\sigma^2 + \epsilon} $$
        """
        params: Params = {}
        for block, (conv, norm) in enumerate(zip(self._convolutions, self._normalizations, strict=True)):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).detach()
            params[f"{block}.weight"] = conv.weight.detach() * scale[:, None, None, None]
            params[f"{block}.bias"] = norm.bias.detach() - norm.running_mean * scale
        return params

    def _layers(self) -> Params:
        params: Params = {}
        for block, (conv, norm) in enumerate(zip(self._convolutions, self._normalizations, strict=True)):
            own = {"weight": conv.weight, "gamma": norm.weight, "beta": norm.bias}
            params |= {f"{block}.{name}": value.detach().clone() for name, value in own.items()}
        return params

    @property
    def _convolutions(self) -> list[nn.Conv2d]:
        return [layer for layer in self.body if isinstance(layer, nn.Conv2d)]

    @property
    def _normalizations(self) -> list[nn.BatchNorm2d]:
        return [layer for layer in self.body if isinstance(layer, nn.BatchNorm2d)]
