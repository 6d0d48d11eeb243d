"""Policies in files that other programs read: safetensors, which ten lines of NumPy load, and ONNX."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import warnings

import torch
from safetensors.numpy import save
from torch import Tensor, nn

from metarl.analysis.agent import AdaptedPolicy
from metarl.integrations.plain import Front, PlainPolicy, plain
from metarl.run.disk import replace_file
from metarl.settings import SettingsError

_ILLEGAL = -1e9  # in the place of the logit of a choice that is not legal
_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def to_safetensors(adapted: AdaptedPolicy, path: str | os.PathLike[str]) -> None:
    """Write a policy as tensors, with the few words that they need as metadata.

    Tensors: ``0.weight`` (in, out), ``0.bias`` (out,), ``1.weight`` and so on; ``task``, ``mean``, ``scale``, ``context``
    (:class:`~metarl.integrations.plain.Inputs`); ``log_std`` (A,) where actions are continuous. Metadata: ``layers``,
    ``activation``, ``limit``, and ``action_low``, ``action_high``, or ``choices`` and ``mask_at`` (-1 for no mask).

    Raises:
        SettingsError: if the policy cannot be exported, or the file not written.
    """
    source = plain(adapted)
    tensors = {name: getattr(source.inputs, name) for name in ("task", "mean", "scale", "context")}
    for number, layer in enumerate(source.layers):
        tensors |= {f"{number}.weight": layer.weight, f"{number}.bias": layer.bias}
    words = {
        "format": "metarl-policy-1",
        "layers": str(len(source.layers)),
        "activation": source.activation,
        "limit": repr(source.inputs.limit),
    }
    if source.log_std is not None:
        tensors["log_std"] = source.log_std
    if source.spec.choices is None:
        words |= {"action_low": repr(source.spec.action_low), "action_high": repr(source.spec.action_high)}
    else:
        words |= {"choices": json.dumps(source.spec.choices.counts), "mask_at": str(_mask_at(source))}
    _write(path, save(tensors, words))


def to_onnx(adapted: AdaptedPolicy, path: str | os.PathLike[str]) -> None:
    """Write the likeliest action as an ONNX graph: ``observation`` (B, O) to ``action`` (B, A), standardising and clipping in it.

    Raises:
        SettingsError: if the policy cannot be exported, the extra ``onnx`` is missing, or the file cannot be written.
    """
    source = plain(adapted)
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(f"ONNX needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[onnx]'")
    example = torch.zeros(2, source.spec.observation_size)
    shapes = {"observation": {0: torch.export.Dim("batch", min=1)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter's own libraries will drop some day
        program = torch.onnx.export(
            Likeliest(source).eval(),
            (example,),
            input_names=["observation"],
            output_names=["action"],
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    _write(path, program.model_proto.SerializeToString())


class Likeliest(nn.Module):
    """The likeliest action of a policy as a module of torch's own layers, equal to ours but for the last bits.

    Args:
        source: the policy.
    """

    def __init__(self, source: PlainPolicy) -> None:
        super().__init__()
        self.front = Front(source.inputs)
        self._spec, self._mask_at = source.spec, _mask_at(source)
        modules: list[nn.Module] = []
        for layer in source.layers:
            inputs, outputs = layer.weight.shape
            linear = nn.Linear(inputs, outputs, device="meta")
            linear.weight = nn.Parameter(torch.tensor(layer.weight.T.copy()))
            linear.bias = nn.Parameter(torch.tensor(layer.bias))
            modules += [linear, _ACTIVATIONS[source.activation]()]
        self.layers = nn.Sequential(*modules[:-1])

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations (B, O) to actions (B, A): float32 within the bounds, or int64 choices."""
        outputs: Tensor = self.layers(self.front(observation))
        choices = self._spec.choices
        if choices is None:
            return outputs.clamp(self._spec.action_low, self._spec.action_high)
        if self._mask_at >= 0:
            legal = observation[:, self._mask_at : self._mask_at + sum(choices.counts)] > 0.5
            outputs = torch.where(legal, outputs, _ILLEGAL)
        return torch.stack([part.argmax(1) for part in torch.split(outputs, list(choices.counts), 1)], 1)


def _mask_at(source: PlainPolicy) -> int:
    return -1 if source.mask_at is None else source.mask_at


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    try:
        replace_file(pathlib.Path(path), data)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror or error}; name another place") from error
