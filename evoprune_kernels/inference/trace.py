"""One run of the model with its linear layers watched: how often each is called, with how many tokens, with what."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels.nn.swap import is_linear, is_sparse, paths

#: rows of a recorded input that are kept to check a kernel's results
SAMPLE_ROWS = 64


@dataclass
class Seen:
    """One linear layer of the model and the calls it had."""

    name: str
    names: list[str]
    module: nn.Module
    calls: Counter[int] = field(default_factory=Counter)
    sample: Tensor | None = None


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


def linear_layers(model: nn.Module) -> list[Seen]:
    """Every linear layer of the model, dense or sparse, in order; a shared one once."""
    layers = []
    for names in paths(model).values():
        module = model.get_submodule(names[0])
        if is_linear(module) or is_sparse(module):
            layers.append(Seen(names[0], names, module))
    return layers


def watch(layers: list[Seen], run: Callable[[], Any]) -> Any:
    """Run once and fill in ``calls`` and ``sample`` of every layer; the output of the run."""
    handles = []
    for layer in layers:

        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: Seen = layer
        ) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(x, Tensor) and x.dim() >= 1 and x.shape[-1] > 0:
                layer.calls[x.numel() // x.shape[-1]] += 1
                if layer.sample is None and x.numel() > 0:
                    layer.sample = x.detach().reshape(-1, x.shape[-1])[:SAMPLE_ROWS].clone()

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
