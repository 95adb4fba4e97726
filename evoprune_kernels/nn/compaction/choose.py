"""Which slots leave: all that can, less those that a layer, a group or a zero-padded border has to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels.nn.compaction.graph import Features, Graph, Layer


class Choice:
    """The slots that stay and why. It starts with those that must, and adds until every layer can be built.

    - A convolution that pads with zeros has a carrier in each group that loses constants other than 0: the closed
      channel with the largest one.
    - The groups of a grouped convolution keep as many inputs as the group that needs most of them, and as many
      outputs; the lowest indices are added. A group that needs neither leaves as a whole.
    - A layer keeps one channel.

    Adding is monotone, so that it ends; with one grouped convolution over slots of its own nothing less would do.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.why = graph.stay()
        self._stays = torch.zeros(len(graph.slots), dtype=torch.bool)
        self._stays[list(self.why)] = True
        untied = [layer for layer in graph.layers if not layer.tied]
        before = -1
        while before != (before := len(self.why)):
            for layer in untied:  # carriers first: they also fill groups up
                self._keep_carriers(layer)
            for layer in untied:
                self._keep_balance(layer)

    def mask(self, features: Features) -> Tensor:
        """bool [F]: what stays."""
        return self._stays[self._graph.slots.roots(features.slots)]

    def groups(self, layer: Layer) -> Tensor:
        """bool [groups]: which groups stay."""
        outputs = self.mask(layer.y).view(layer.groups, -1).any(1)
        if layer.x is None:
            return outputs
        return outputs | self.mask(layer.x).view(layer.groups, -1).any(1)

    def carriers(self, layer: Layer) -> list[int | None]:
        """Per group the input that carries the constants of those that leave; None where they go into the bias."""
        found: list[int | None] = [None] * layer.groups
        if layer.x is None or not layer.pads_zeros or layer.tied:
            return found
        stays = self.mask(layer.x).view(layer.groups, -1)
        size = torch.where(layer.x.fixed, layer.x.value.abs(), 0.0).double().cpu()
        size = size.view(layer.groups, -1)
        used = self.mask(layer.y).view(layer.groups, -1).any(1).tolist()
        for group, alive in enumerate(used if layer.groups > 1 else [True]):
            gone = torch.where(stays[group], 0.0, size[group])
            if not alive or not bool((gone > 0).any()):
                continue
            staying = torch.where(stays[group], size[group], 0.0)
            enough = float(staying.max()) >= 0.5 * float(gone.max())  # else the quotient grows
            best = int((staying if enough else gone).argmax())
            found[group] = group * size.shape[1] + best
        return found

    def _keep_carriers(self, layer: Layer) -> None:
        for index in self.carriers(layer):
            if index is not None and layer.x is not None:
                reason = f"carries the constants of others over the zero border of {layer.name}"
                self._keep(layer.x.slots[index : index + 1], reason)

    def _keep_balance(self, layer: Layer) -> None:
        alive = self.groups(layer)
        if not bool(alive.any()):
            alive[0] = True
        for features in (layer.x, layer.y):
            if features is None:
                continue
            slots = features.slots.view(layer.groups, -1)
            stays = self.mask(features).view(layer.groups, -1)
            most = max(1, int(stays[alive].sum(1).max()))
            reason = f"every group of {layer.name} has to keep {most}"
            if most == 1 and not bool(stays.any()):
                reason = f"{layer.name} has to keep one"
            for group in alive.nonzero().flatten().tolist():
                missing = most - int(stays[group].sum())
                self._keep(slots[group][~stays[group]][:missing], reason)

    def _keep(self, slots: Tensor, reason: str) -> None:
        for root in self._graph.slots.roots(slots).tolist():
            self.why.setdefault(root, reason)
            self._stays[root] = True
