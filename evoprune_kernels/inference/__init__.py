"""``optimize_for_inference``: layers run sparse where that was measured to be faster, and dense elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace as with_fields
from typing import Any

import torch
from torch import nn

from evoprune_kernels import measure
from evoprune_kernels.formats import Pattern
from evoprune_kernels.inference import candidates, trace, tune
from evoprune_kernels.inference.report import InferenceReport, LayerReport, ModelReport
from evoprune_kernels.inference.trace import Seen
from evoprune_kernels.inference.tune import DENSE, Checked, Effort
from evoprune_kernels.measure import Measurement
from evoprune_kernels.nn.masks import check_finite, layer_pattern
from evoprune_kernels.nn.packed import STORED
from evoprune_kernels.nn.sparse_conv import SparseConv2d
from evoprune_kernels.nn.swap import (
    Sparse,
    dense_view,
    is_sparse,
    replace,
    weight_of,
    why_not_weight,
)

#: outputs of the whole model may differ by this share of the largest one
MODEL_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
#: the same where weights are stored narrower than they are
STORED_TOLERANCE = 5e-2


def optimize_for_inference(
    model: nn.Module,
    example_inputs: Any,
    min_speedup: float = 1.05,
    patterns: Sequence[str | Pattern] | None = None,
    *,
    stored: Sequence[str] = (),
    rounds: int = 15,
    max_seconds: float = 2.0,
) -> InferenceReport:
    """Time every linear layer and ``nn.Conv2d`` of ``model`` dense against sparse on this machine, and keep what wins.

    The model runs once with ``example_inputs`` to learn how many tokens each layer gets. For each layer the sparse
    forms that its zeros fit are packed, checked against float64 on the recorded input, and timed against the dense
    layer: interleaved shuffled rounds, the dense layer measured twice (A/A), on weights as cold as in the model. A form
    is kept if the p20 of its per-round speed-ups reaches ``min_speedup`` and exceeds the A/A spread. At last the whole
    model is timed, dense against optimised; if it is not faster, everything is put back.

    A sparse convolution takes over the ``nn.BatchNorm2d`` and the ReLU, GELU or SiLU behind it where nothing else sees
    what lies between (``torch.fx``, else neighbours in an ``nn.Sequential``; a module that is called more than once is
    left where it is). It is held and timed against the dense convolution with the same folded in, so that the speed-up
    is that of the sparsity; ``nn.Identity`` stands in the place of what was taken over, and the folded weight is a new
    Parameter, as after ``torch.nn.utils.fuse_conv_bn_eval``.

    Args:
        model: changed in place, and put in eval mode. Its weights are not changed (but see folding, above);
            layers may be plain or sparse.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, of the sizes that matter.
        min_speedup: what a layer has to win by.
        patterns: the only patterns to try, such as ``["2:4"]``; None tries what the zeros suggest.
        stored: further ways to store the packed weights that may be tried, ``"bfloat16"``, ``"int8"`` and
            ``"w8a8"`` (int8 arithmetic, inputs rounded as well; see ``SparseLinear``): fewer bytes, faster, less exact.
            The report states each layer's error against weight and input as they were.
        rounds: interleaved rounds of each measurement.
        max_seconds: after this time a measurement stops (not before five rounds).

    Returns:
        The report: print it, or take ``to_dict()`` or ``to_json(path)``.

    Raises:
        ValueError: for a bad ``min_speedup`` or pattern, NaN in a weight (the layer is named), example inputs on
            another device than the model (both are named), or a device whose work cannot be waited for.
        TypeError: for ``example_inputs`` of another kind. The model is then as it was, in eval mode.

    Notes:
        On a GPU every sample ends when the device has done its work, the launches of the host included. Uses torch's
        present number of threads; set it as in production. Identical layers share one timing. Packed weights are
        caches beside the dense ones: memory grows by their size.

    Example:
        >>> import torch, evoprune_kernels as ek
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
        >>> report = ek.optimize_for_inference(model, torch.randn(1, 64), rounds=3)
        >>> report.swapped, report.layers[0].reason
        ([], 'its weight has no zeros to skip (100% are kept)')
    """
    if not min_speedup > 0:
        raise ValueError(f"expected min_speedup > 0, got {min_speedup}")
    if unknown := [s for s in stored if s not in STORED]:
        raise ValueError(f"expected stored of {STORED}, got {unknown[0]!r}")
    asked = None if patterns is None else [layer_pattern(p, None) for p in patterns]
    model.eval()
    run = trace.runner(model, example_inputs)
    devices = trace.devices_of(model, example_inputs)
    layers, untraced = trace.layers_of(model)
    for seen in layers:  # the run that is watched is the dense one
        _install(model, seen, tune.dense_form(seen.module))
    try:
        watched = [with_fields(s, module=model.get_submodule(s.name)) for s in layers]
        trace.watch(watched, run)
        for seen, twin in zip(layers, watched, strict=True):
            seen.calls, seen.sample, seen.inputs = twin.calls, twin.sample, twin.inputs
        effort = _effort(layers, rounds, max_seconds, devices)
        reports, chosen = _tune_all(layers, (asked, (None, *stored)), min_speedup, effort)
        whole, reverted = None, None
        if chosen:
            whole = _time_model(model, layers, chosen, run, effort)
            narrower = any(layer.stored for layer in chosen.values())
            reverted = _verdict(whole, layers, STORED_TOLERANCE if narrower else 0.0)
    except BaseException:
        for seen in layers:
            _install(model, seen, seen.module)
        raise
    if reverted is not None:
        reports = [
            with_fields(r, reason=f"whole model: {reverted}") if r.sparse else r for r in reports
        ]
        chosen = {}
    for seen, report in zip(layers, reports, strict=True):
        final: nn.Module = chosen.get(seen.name, seen.module)
        if is_sparse(final) and report.reason is not None:
            final.stay_dense(report.reason)
        _install(model, seen, final)
    machine = measure.machine_info()
    return InferenceReport(tuple(reports), whole, min_speedup, machine, reverted, untraced)


def _effort(
    layers: list[Seen], rounds: int, max_seconds: float, devices: list[torch.device]
) -> Effort:
    called = {id(weight_of(s.module)): weight_of(s.module).nbytes for s in layers if s.calls}
    cache = max(map(measure.cache_bytes, devices), default=measure.last_level_cache_bytes())
    wait = measure.synchronizer(*devices)
    return Effort(rounds, max_seconds, cache, sum(called.values()), wait)


def _install(model: nn.Module, seen: Seen, module: nn.Module) -> None:
    for name in seen.names:
        replace(model, name, module)
    if seen.tail is not None:
        taken = isinstance(module, SparseConv2d)
        for name, its in (seen.tail.stand_ins if taken else seen.tail.modules).items():
            replace(model, name, its)


#: the only patterns to try, or None for all that may pay; and how to store each
Forms = tuple[list[Pattern] | None, tuple[str | None, ...]]


def _tune_all(
    layers: list[Seen], forms: Forms, min_speedup: float, effort: Effort
) -> tuple[list[LayerReport], dict[str, Sparse]]:
    """A report for every layer, and the sparse forms that won."""
    reports, chosen = [], {}
    timed: dict[tuple[Any, ...], tuple[str, Measurement]] = {}
    for seen in layers:
        report, checked = _examine(seen, forms)
        if checked:
            key = _likeness(seen, checked)
            if key in timed:
                report = with_fields(report, measured_as=timed[key][0])
            else:
                timed[key] = (seen.name, _measure(seen, checked, min_speedup, effort))
            report = _judge(report, checked, timed[key][1], min_speedup)
            if report.sparse:
                assert report.pattern is not None
                chosen[seen.name] = checked[report.pattern].layer
        reports.append(report)
    return reports, chosen


def _examine(seen: Seen, forms: Forms) -> tuple[LayerReport, dict[str, Checked]]:
    """What can be said of a layer without a clock, and its sparse forms that give right results."""
    module = seen.module
    kind = type(module).__name__
    weight = module._parameters.get("weight")
    if (reason := None if is_sparse(module) else why_not_weight(module)) or weight is None:
        shape = (getattr(module, "out_features", 0), getattr(module, "in_features", 0))
        report = LayerReport(seen.name, kind, shape, "-", dict(seen.calls), 1.0)
        return with_fields(report, reason=reason or "its weight is not a Parameter"), {}
    dense = dense_view(module)
    density = 1.0 if dense.is_meta else float((dense != 0).float().mean())
    shape = (dense.shape[0], dense.shape[1])
    report = LayerReport(seen.name, kind, shape, str(dense.dtype)[6:], dict(seen.calls), density)
    if seen.tail is not None:
        report = with_fields(report, fused=str(seen.tail))
    if seen.sample is None:
        return with_fields(report, reason="not called with any token by the example inputs"), {}
    check_finite(dense, seen.name)
    own = module.pattern if is_sparse(module) else None
    tried, reason = candidates.candidates(dense, min(seen.calls), forms[0], own)
    checked: dict[str, Checked] = {}
    ways = (*forms[1], *([module.stored] if is_sparse(module) else []))
    for pattern, stored in itertools.product(tried, dict.fromkeys(ways)):
        layer = tune.sparse_form(seen, pattern, stored)
        found = layer if isinstance(layer, str) else tune.check(seen, layer)
        if isinstance(found, Checked):
            checked[f"{pattern} {stored}" if stored else str(pattern)] = found
        else:
            reason = found
    return (report, checked) if checked else (with_fields(report, reason=reason), {})


def _measure(
    seen: Seen, checked: dict[str, Checked], min_speedup: float, effort: Effort
) -> Measurement:
    """Time a layer; once more, twice as long, where a form is fast enough in the median and fails by its spread."""
    result = tune.time_layer(seen, checked, effort)
    fast = max(result.ratio(DENSE, name).median for name in checked) >= min_speedup
    empty = LayerReport(seen.name, "", (0, 0), "", {}, 1.0)
    if not fast or _judge(empty, checked, result, min_speedup).sparse:
        return result
    longer = with_fields(effort, rounds=2 * effort.rounds, max_seconds=2 * effort.max_seconds)
    return tune.time_layer(seen, checked, longer)


def _likeness(seen: Seen, checked: dict[str, Checked]) -> tuple[Any, ...]:
    """Layers of the same likeness cost the same: shape, dtype, bias, calls, and what is stored in each form."""
    weight = weight_of(seen.module)
    stored = tuple(
        (name, form.layer.activation, form.layer.stored_percent) for name, form in checked.items()
    )
    bias = seen.module._parameters.get("bias") is None
    calls = tuple(sorted(seen.calls.items()))
    sizes = tuple(getattr(seen.module, name, None) for name in ("stride", "padding", "dilation"))
    conv = (*sizes, tuple(sorted((n, *each) for n, each in seen.inputs.items())), str(seen.tail))
    return tuple(weight.shape), tuple(weight.stride()), weight.dtype, bias, calls, stored, conv


def _judge(
    report: LayerReport, checked: dict[str, Checked], result: Measurement, min_speedup: float
) -> LayerReport:
    """Keep the fastest form if it wins by enough and by more than noise."""
    ratios = {name: result.ratio(DENSE, name) for name in checked}
    best = max(ratios, key=lambda name: ratios[name].median)
    ratio, noise, form = ratios[best], result.noise(DENSE), checked[best]
    reason = None
    if ratio.median < min_speedup:
        reason = f"{best} gives {ratio}, less than {min_speedup:g}x"
    elif ratio.p20 < min_speedup:
        reason = f"{best} gives {ratio}, not surely {min_speedup:g}x"
    elif ratio.p20 < 1 + noise:
        reason = f"{best} gives {ratio}, within the noise (dense against itself strays {noise:.0%})"
    return with_fields(
        report,
        pattern=best,
        kernel=form.layer.kernel if reason is None else None,
        dense_us=result.timing(DENSE).median * 1e6,
        sparse_us=result.timing(best).median * 1e6,
        speedup=ratio,
        noise=noise,
        max_error=form.error,
        dense_error=form.dense_error,
        tried={name: r.median for name, r in ratios.items()},
        reason=reason,
    )


def _time_model(
    model: nn.Module,
    layers: list[Seen],
    chosen: dict[str, Sparse],
    run: Any,
    effort: Effort,
) -> ModelReport:
    """The whole model, dense against optimised. Swapping the layers takes microseconds and both sides pay it."""
    dense = {seen.name: tune.dense_form(seen.module) for seen in layers}

    def with_layers(sparse: bool) -> Any:
        for seen in layers:
            plain = dense[seen.name]
            _install(model, seen, chosen.get(seen.name, plain) if sparse else plain)
        with torch.no_grad():
            return run()

    contenders = {DENSE: lambda: with_layers(False), "sparse": lambda: with_layers(True)}
    gap = trace.difference(with_layers(True), with_layers(False))
    result = measure.interleave(
        measure.add_control(contenders, DENSE),
        rounds=effort.rounds,
        max_seconds=5 * effort.max_seconds,
        synchronize=effort.synchronize,
    )
    return ModelReport(
        dense_ms=result.timing(DENSE).median * 1e3,
        sparse_ms=result.timing("sparse").median * 1e3,
        speedup=result.ratio(DENSE, "sparse"),
        noise=result.noise(DENSE),
        max_difference=gap,
    )


def _verdict(whole: ModelReport, layers: list[Seen], least: float) -> str | None:
    """Why the model is put back to dense, or None."""
    dtypes = [weight_of(s.module).dtype for s in layers if s.calls]
    allowed = max(least, *(MODEL_TOLERANCE.get(dtype, 0.0) for dtype in dtypes))
    if not whole.max_difference <= allowed:
        return f"its outputs differ by {whole.max_difference:.1e} of the largest, {allowed:.0e} is allowed"
    if whole.speedup.median < 1:
        return f"it was not faster as a whole, {whole.speedup}"
    return None


__all__ = ["InferenceReport", "LayerReport", "ModelReport", "optimize_for_inference"]
