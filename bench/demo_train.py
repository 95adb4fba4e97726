"""The training half of the demo: one run that prunes while it trains, and a dense control forked from the same start.

Until the first weight is pruned both runs are the same run, so that part is trained once:

    step      0 ......... start ............... end ......... steps
    pruned    dense       sparsity rises        frozen masks
    control   (the same)  dense, same data, same steps
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

import evoprune_kernels as ek
from bench.char_gpt import CharGPT, GPTConfig
from bench.text import SYMBOLS, Text

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Plan:
    """Sizes and times of a training run; ``rows`` windows of ``context`` characters a step."""

    pattern: str
    sparsity: float | None
    importance: str = "evolution"
    width: int = 384
    layers: int = 3
    heads: int = 6
    context: int = 128
    rows: int = 4
    steps: int = 400
    lr: float = 1e-3
    seed: int = 0

    @property
    def start(self) -> int:
        """The first step that prunes."""
        return self.steps * 3 // 10

    @property
    def end(self) -> int:
        """The step at which the final sparsity is reached and the masks freeze."""
        return self.steps * 7 // 10

    @property
    def every(self) -> int:
        """Steps between two choices of the masks."""
        return max(1, (self.end - self.start) // 10)

    def model_config(self) -> GPTConfig:
        """The model's sizes."""
        return GPTConfig(len(SYMBOLS), self.context, self.layers, self.width, self.heads)

    def prune_config(self) -> ek.PruneConfig:
        """The optimizer's pruning."""
        return ek.PruneConfig(
            self.pattern,
            sparsity=self.sparsity,
            importance=self.importance,
            start=self.start,
            end=self.end,
            every=self.every,
        )

    def rate(self, step: int) -> float:
        """Learning rate: a short rise, then half a cosine down to a tenth."""
        rise = min(1.0, (step + 1) / max(1, min(20, self.steps // 10)))
        return self.lr * rise * (0.55 + 0.45 * math.cos(math.pi * step / self.steps))

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "start": self.start, "end": self.end, "every": self.every}


@dataclass
class History:
    """What was seen: the training loss of every step, held-out losses and sparsity now and then."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    sparsity: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Trained:
    """Both models and their histories; ``loss`` holds the held-out losses in nats per character."""

    pruned: CharGPT
    control: CharGPT
    masks: dict[str, Tensor]
    history: dict[str, History]
    loss: dict[str, float]
    seconds: float


Tick = Callable[[str, int, float], None]


def train(plan: Plan, text: Text, tick: Tick) -> Trained:
    """Train the pruned model and its dense control; ``tick(run, step, loss)`` after every step."""
    began = time.perf_counter()
    torch.manual_seed(plan.seed)
    model = CharGPT(plan.model_config())
    groups = ek.optim.prunable_groups(model, plan.prune_config(), exclude=("head",))
    optimizer = ek.optim.AdamW(groups, lr=plan.lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
    data = torch.Generator().manual_seed(plan.seed)
    held_out = text.held_out(64 if plan.steps >= 100 else 4, plan.context)
    shared, pruned, control = History(), History(), History()

    run_steps(model, optimizer, range(plan.start), plan, text, data, shared, held_out, tick)
    before = evaluate(model, held_out)
    dense_model, dense_optimizer = fork(model, optimizer, plan)
    dense_data = torch.Generator()
    dense_data.set_state(data.get_state())

    rest = range(plan.start, plan.steps)
    run_steps(model, optimizer, rest, plan, text, data, pruned, held_out, tick, "pruned")
    run_steps(
        dense_model,
        dense_optimizer,
        rest,
        plan,
        text,
        dense_data,
        control,
        held_out,
        tick,
        "control",
    )
    masks = {
        name: optimizer.masks()[p] for name, p in model.named_parameters() if p in optimizer.masks()
    }
    loss = {
        "before_pruning": before,
        "pruned": evaluate(model, held_out),
        "dense_control": evaluate(dense_model, held_out),
    }
    history = {"shared": shared, "pruned": pruned, "control": control}
    return Trained(model, dense_model, masks, history, loss, time.perf_counter() - began)


def fork(model: CharGPT, optimizer: Any, plan: Plan) -> tuple[CharGPT, torch.optim.AdamW]:
    """A copy of the run that goes on with torch's own fused AdamW from the same weights and moments."""
    twin = copy.deepcopy(model)
    other = torch.optim.AdamW(
        twin.parameters(), lr=plan.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    for old, new in zip(model.parameters(), twin.parameters(), strict=True):
        state = optimizer.state[old]
        other.state[new] = {
            k: state[k].clone() for k in ("step", "exp_avg", "exp_avg_sq") if k in state
        }
    return twin, other


def run_steps(
    model: CharGPT,
    optimizer: Any,
    steps: range,
    plan: Plan,
    text: Text,
    data: torch.Generator,
    history: History,
    held_out: Tensor,
    tick: Tick,
    name: str = "shared",
) -> None:
    """An ordinary training loop: nothing in it knows about pruning but the line that records the sparsity."""
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        loss = model.loss(text.batch(plan.rows, plan.context, data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.steps.append(step)
        history.loss.append(loss.item())
        if name != "control":
            history.sparsity.append((step, sparsity(model)))
        if (step + 1) % max(1, plan.steps // 10) == 0:
            history.held_out.append((step, evaluate(model, held_out[:16])))
        tick(name, step, history.loss[-1])


@torch.no_grad()
def evaluate(model: CharGPT, windows: Tensor) -> float:
    """Mean loss in nats per character."""
    return sum(model.loss(part).item() * len(part) for part in windows.split(8)) / len(windows)


@torch.no_grad()
def sparsity(model: CharGPT) -> float:
    """Share of zeros in the weights of the blocks' linear layers."""
    weights = [m.weight for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)]
    return 1.0 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
