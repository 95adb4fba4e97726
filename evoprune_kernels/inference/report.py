"""What ``optimize_for_inference`` found, to be printed or written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evoprune_kernels.measure import Ratio


@dataclass(frozen=True)
class LayerReport:
    """One linear layer or convolution: what was measured, and what became of it."""

    name: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    #: tokens of one call -> calls, in one run of the model
    calls: dict[int, int]
    density: float
    #: of the kept sparse form, or of the best one tried; None where nothing was tried
    pattern: str | None = None
    kernel: str | None = None
    #: microseconds, all calls of one run of the model together
    dense_us: float | None = None
    sparse_us: float | None = None
    speedup: Ratio | None = None
    #: how far the p20..p80 of dense against itself strays from 1
    noise: float | None = None
    #: largest difference to float64, over the largest true value; and the same of torch's dense layer
    max_error: float | None = None
    dense_error: float | None = None
    #: every pattern that was timed -> median speed-up
    tried: dict[str, float] = field(default_factory=dict)
    #: what a sparse convolution takes over, such as "BatchNorm2d + ReLU"
    fused: str | None = None
    #: an identical layer whose timing this one took over
    measured_as: str | None = None
    #: why the layer is dense; None if it is sparse now
    reason: str | None = None

    @property
    def sparse(self) -> bool:
        """Whether the layer runs sparse now."""
        return self.reason is None


@dataclass(frozen=True)
class ModelReport:
    """The whole model, dense against optimised."""

    dense_ms: float
    sparse_ms: float
    speedup: Ratio
    noise: float
    #: largest difference of the outputs, over the largest dense output
    max_difference: float


@dataclass(frozen=True)
class InferenceReport:
    """The result of ``optimize_for_inference``: ``print(report)``, ``report.to_dict()``, ``report.to_json(path)``."""

    layers: tuple[LayerReport, ...]
    model: ModelReport | None
    min_speedup: float
    machine: dict[str, str | int]
    #: why the whole model was put back to dense, or None
    reverted: str | None = None
    #: what torch.fx cannot look into ("": the model) -> why: a batch norm in there is found in an nn.Sequential only
    untraced: dict[str, str] = field(default_factory=dict)

    @property
    def swapped(self) -> list[str]:
        """Names of the layers that are sparse now."""
        return [layer.name for layer in self.layers if layer.sparse]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {**asdict(self), "swapped": self.swapped}

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON text; also written to ``path`` if that is given."""
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    def __str__(self) -> str:
        head = [
            "layer",
            "shape",
            "tokens",
            "pattern",
            "kernel",
            "dense us",
            "sparse us",
            "speed-up (p20..p80)",
            "max error",
            "why it is dense",
        ]
        rows = [_row(layer) for layer in self.layers]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        right = {5, 6}
        lines = []
        for row in [head, *rows]:
            cells = [
                c.rjust(w) if i in right else c.ljust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "-" * max(map(len, lines)))
        lines += ["", *self._summary()]
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        total = [x for x in self.layers if x.dense_us is not None and x.sparse_us is not None]
        lines = [
            f"{len(self.swapped)} of {len(self.layers)} layers run sparse; a layer had to win by "
            f"{self.min_speedup:g}x, {self.machine['threads']} thread(s), {self.machine['cpu']}, {self.machine['isa']}"
        ]
        kept = [x for x in total if x.sparse]
        if kept:
            dense, sparse = sum(x.dense_us or 0 for x in kept), sum(x.sparse_us or 0 for x in kept)
            lines.append(f"these layers: {dense:,.0f} -> {sparse:,.0f} us, {dense / sparse:.2f}x")
        if self.model is not None:
            m = self.model
            lines.append(
                f"whole model: {m.dense_ms:.3f} -> {m.sparse_ms:.3f} ms, {m.speedup} (dense against itself strays "
                f"{m.noise:.1%}), outputs differ by {m.max_difference:.1e} of the largest"
            )
        if self.reverted is not None:
            lines.append(f"put back to dense: {self.reverted}")
        for name, why in self.untraced.items():
            lines.append(
                f"batch norms behind convolutions of {name or 'the model'} are found in nn.Sequential only: {why}"
            )
        if self.swapped:
            lines.append(
                "run it under torch.no_grad() or torch.inference_mode(); with gradients enabled it is dense"
            )
        return lines


def _row(layer: LayerReport) -> list[str]:
    tokens = ",".join(str(t) if n == 1 else f"{t} x{n}" for t, n in layer.calls.items())
    cells = [layer.name, f"{layer.shape[0]}x{layer.shape[1]}", tokens or "-", layer.pattern or "-"]
    taken = f" + {layer.fused}" if layer.kernel and layer.fused else ""
    cells.append(f"{layer.kernel or 'dense'}{taken}")
    cells += ["-" if v is None else f"{v:,.1f}" for v in (layer.dense_us, layer.sparse_us)]
    cells.append(str(layer.speedup) if layer.speedup else "-")
    cells.append("-" if layer.max_error is None else f"{layer.max_error:.1e}")
    cells.append(layer.reason or "")
    return cells
