"""One run of the model with its layers watched: how often each is called, with how many tokens, with what."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels.inference.fusion import Tail, tails
from evoprune_kernels.nn.swap import is_conv, is_linear, is_sparse, paths, weight_of
from evoprune_kernels.ops._channels import memory_format

#: rows of a recorded input that are kept to check a kernel's results
SAMPLE_ROWS = 64


@dataclass
class Seen:
    """One linear layer or convolution of the model and the calls it had; a position of an output is a token."""

    name: str
    names: list[str]
    module: nn.Module
    calls: Counter[int] = field(default_factory=Counter)
    sample: Tensor | None = None
    #: of a convolution: tokens -> shape and memory order of the first input that gave as many
    inputs: dict[int, tuple[torch.Size, torch.memory_format]] = field(default_factory=dict)
    #: of a convolution: the batch norm and activation that a sparse one takes over
    tail: Tail | None = None

    def take(self, x: Tensor) -> None:
        """Count a call with ``x``."""
        if is_conv(self.module):
            self._take_image(x)
        elif x.dim() >= 1 and x.shape[-1] > 0:
            self.calls[x.numel() // x.shape[-1]] += 1
            if self.sample is None and x.numel() > 0:
                self.sample = x.detach().reshape(-1, x.shape[-1])[:SAMPLE_ROWS].clone()

    def _take_image(self, x: Tensor) -> None:
        assert is_conv(self.module)
        weight = weight_of(self.module).to("meta")
        y = self.module._conv_forward(x.to("meta", weight.dtype), weight, None)
        tokens = y.numel() // max(1, y.shape[-3])
        self.calls[tokens] += 1
        self.inputs.setdefault(tokens, (x.shape, memory_format(x)))
        if self.sample is None and x.numel() > 0:
            self.sample = (x[:1] if x.dim() == 4 else x).detach().clone()


def runner(model: nn.Module, example_inputs: Any) -> Callable[[], Any]:
    """``model`` called with a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return lambda: model(example_inputs)
    if isinstance(example_inputs, Mapping):
        return lambda: model(**example_inputs)
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        return lambda: model(*example_inputs)
    raise TypeError(
        "expected example_inputs as a tensor, a tuple of arguments or a dict of keyword arguments, got "
        f"{type(example_inputs).__name__}"
    )


def devices_of(model: nn.Module, example_inputs: Any) -> list[torch.device]:
    """The devices that ``model`` works on, in order.

    Raises:
        ValueError: if ``example_inputs`` has tensors and none of them is where the model is.
    """
    state = itertools.chain(model.parameters(), model.buffers())
    found = list(dict.fromkeys(tensor.device for tensor in state))
    given = list(dict.fromkeys(tensor.device for tensor in inputs_of(example_inputs)))
    if found and given and not set(found) & set(given):
        names = (", ".join(map(str, each)) for each in (given, found))
        raise ValueError("example_inputs are on {}, the model is on {}".format(*names))
    return found or given


def inputs_of(example_inputs: Any) -> list[Tensor]:
    """Every tensor in ``example_inputs``, of any dtype, in order."""
    if isinstance(example_inputs, Tensor):
        return [example_inputs]
    if isinstance(example_inputs, Mapping):
        example_inputs = list(example_inputs.values())
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        return [tensor for item in example_inputs for tensor in inputs_of(item)]
    return []


def layers_of(model: nn.Module) -> tuple[list[Seen], dict[str, str]]:
    """Every linear layer and convolution, in order, a shared one once; and what ``tails`` could not trace."""
    layers = []
    followed: dict[str, Tail] = {}
    untraced: dict[str, str] = {}
    if any(map(is_conv, model.modules())):
        followed, untraced = tails(model)
    for names in paths(model).values():
        module = model.get_submodule(names[0])
        if is_linear(module) or is_conv(module) or is_sparse(module):
            layers.append(Seen(names[0], names, module, tail=followed.get(names[0])))
    return layers, untraced


def watch(layers: list[Seen], run: Callable[[], Any]) -> Any:
    """Run once and let every layer ``take`` its inputs; the output of the run."""
    handles = []
    for layer in layers:

        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: Seen = layer
        ) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(x, Tensor):
                layer.take(x)

        handles.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            return run()
    finally:
        for handle in handles:
            handle.remove()


def tensors_of(output: Any) -> list[Tensor]:
    """Every floating-point tensor in a model's output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for item in output for tensor in tensors_of(item)]
    return []


def difference(actual: Any, expected: Any) -> float:
    """Largest difference of two outputs over the largest expected value; infinite where only one is finite."""
    worst = 0.0
    for a, b in zip(tensors_of(actual), tensors_of(expected), strict=True):
        if a.numel() == 0:
            continue
        same = (a == b) | (a.isnan() & b.isnan())
        gap = (
            torch.where(same, 0.0, (a.double() - b.double()).abs())
            .nan_to_num(nan=torch.inf)
            .max()
            .item()
        )
        finite = b[b.isfinite()].double().abs()
        scale = finite.max().item() if finite.numel() else 0.0
        worst = max(worst, gap / scale if scale else gap)
    return worst
