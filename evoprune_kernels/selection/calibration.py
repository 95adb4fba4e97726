"""Calibration: sums over the inputs that each layer sees while a model runs on a few batches.

    squares[j] = sum over samples of x_j^2          what Wanda needs, K numbers a layer
    gram[i, j] = sum over samples of x_i * x_j      what SparseGPT needs, K^2 numbers a layer

A sample is one row that the weight is multiplied by: a token, or a patch of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels._check import check
from evoprune_kernels.selection._layers import Layer, find_layers

#: ``forward(model, batch)`` runs the model on one batch; what it returns is not used
Forward = Callable[[nn.Module, Any], Any]

ACCUMULATORS = (torch.float32, torch.float64)


@dataclass
class InputSums:
    """What was summed over the inputs of one layer.

    Attributes:
        samples: how many rows were seen.
        squares: float64 [K], the sum of x_j^2.
        gram: [K, K] in the dtype that ``calibrate`` was given, the sum of x x^T; None unless asked for.
    """

    samples: int
    squares: Tensor
    gram: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Adds ``rows`` [samples, K], in the dtype of the Gram matrix."""
        self.samples += rows.shape[0]
        self.squares += rows.square().sum(0).double()
        if self.gram is not None:
            self.gram.addmm_(rows.t(), rows)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    gram: bool = False,
    dtype: torch.dtype = torch.float32,
    forward: Forward | None = None,
    exclude: Iterable[str] = (),
) -> dict[str, InputSums]:
    """Run ``model`` on ``batches`` and sum what every layer saw.

    ``squares[j] = sum x_j^2``, and with ``gram``: ``gram = sum x x^T``

    Args:
        model: runs in eval mode without gradients; modes, ``.grad`` and hooks are afterwards as they were, also after
            an error.
        batches: an iterable, read once. A tensor is passed as ``model(batch)``, a mapping as ``model(**batch)``.
        gram: whether to sum the Gram matrices too: K^2 numbers for every layer at once.
        dtype: of the products and of the Gram matrix, float32 or float64.
        forward: ``forward(model, batch)`` for batches of any other kind, such as ``(inputs, labels)`` tuples.
        exclude: names of modules or parameters to leave out; shell wildcards are allowed.

    Returns:
        weight name -> ``InputSums``, for ``nn.Linear`` (``SparseLinear`` and other subclasses included), transformers'
        ``Conv1D`` and ``nn.Conv2d`` with groups=1.

    Raises:
        ValueError: for a layer that was never called (``nn.MultiheadAttention`` reads its weights without calling its
            layer) or whose inputs hold NaN or an infinity, naming it; for no batch at all; as ``find_layers`` for
            layers that are not supported.
        TypeError: for a batch that needs ``forward``, or another dtype.

    Notes:
        Every row counts alike, padding included: leave padding out of the batches, or weigh it by ``forward``. The sums
        of a weight that several modules share are over all of them.

    Example:
        >>> import torch
        >>> from evoprune_kernels.selection import calibrate
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3))
        >>> sums = calibrate(model, [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])], gram=True)
        >>> sums["0.weight"].samples, sums["0.weight"].squares.tolist(), sums["0.weight"].gram.tolist()
        (2, [10.0, 4.0], [[10.0, 2.0], [2.0, 4.0]])
    """
    layers = find_layers(model, exclude)
    return sum_inputs(model, batches, layers.values(), gram=gram, dtype=dtype, forward=forward)


def sum_inputs(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Iterable[Layer],
    *,
    gram: bool,
    dtype: torch.dtype,
    forward: Forward | None,
) -> dict[str, InputSums]:
    """``calibrate`` for given layers."""
    if dtype not in ACCUMULATORS:
        raise TypeError(f"expected dtype torch.float32 or torch.float64, got {dtype}")
    sums: dict[str, InputSums] = {}
    layers = list(layers)
    for layer in layers:
        size, device = layer.columns, layer.weight.device
        squares = torch.zeros(size, dtype=torch.float64, device=device)
        matrix = torch.zeros(size, size, dtype=dtype, device=device) if gram else None
        sums[layer.name] = InputSums(0, squares, matrix)

    def add(layer: Layer, module: nn.Module, input: Tensor) -> None:
        with torch.autocast(input.device.type, enabled=False):
            sums[layer.name].add(layer.input_rows(module, input.to(dtype)))

    run_hooked(model, batches, layers, add, forward)
    for layer in layers:
        found = sums[layer.name]
        check(found.samples > 0, f"{layer.name}: the batches never called this layer: exclude it")
        finite = bool(found.squares.isfinite().all())
        finite = finite and (found.gram is None or bool(found.gram.isfinite().all()))
        check(finite, f"{layer.name}: expected finite inputs, got sums with NaN or infinity")
    return sums


def call_order(
    model: nn.Module, batches: Iterable[Any], layers: Iterable[Layer], forward: Forward | None
) -> list[Layer]:
    """The layers in the order in which they are first called; ``ValueError`` names one that never is."""
    layers = list(layers)
    order: dict[str, Layer] = {}

    def note(layer: Layer, module: nn.Module, input: Tensor) -> None:
        order.setdefault(layer.name, layer)

    run_hooked(model, batches, layers, note, forward)
    for layer in layers:
        check(layer.name in order, f"{layer.name}: the batches never called this layer: exclude it")
    return list(order.values())


def run_hooked(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Iterable[Layer],
    see: Callable[[Layer, nn.Module, Tensor], None],
    forward: Forward | None,
) -> None:
    """Runs all batches; ``see(layer, module, input)`` before every call of a layer."""
    count = 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        for layer in layers:
            for module in layer.modules:
                hook = _hook(layer, see)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        for batch in batches:
            (forward or run_batch)(model, batch)
            count += 1
    check(count > 0, "expected at least one calibration batch, got none")


def _hook(layer: Layer, see: Callable[[Layer, nn.Module, Tensor], None]) -> Callable[..., None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(layer, module, args[0] if args else next(iter(kwargs.values())))

    return before


def run_batch(model: nn.Module, batch: Any) -> Any:
    """``model(batch)`` for a tensor, ``model(**batch)`` for a mapping; ``TypeError`` for anything else."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    raise TypeError(
        f"expected batches of tensors or mappings, got {type(batch).__name__}: pass forward=lambda model, batch: ..."
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module has the mode it had, also one that differed from its parent's."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
