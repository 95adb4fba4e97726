"""``python -m bench COMMAND``: measure, print a table, write one JSON. ``--help`` lists the commands."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from bench.gate import GateError

#: command -> (module, what it does); a module has ``add_arguments(parser)`` and ``run(args) -> dict``
COMMANDS = {
    "linear": (
        "bench.linear",
        "sparse linear layers against dense F.linear and every peer that is installed",
    ),
    "optim": (
        "bench.optim",
        "the fused step against torch's fused AdamW and what people compose around it",
    ),
    "model": ("bench.model", "a transformer stack end to end: dense, masked dense, optimised"),
    "ssprop": ("bench.ssprop", "ssProp's channel-sparse backward against the dense one"),
    "gates": ("bench.gates", "channel gates, with the batch norm behind them, against torch"),
    "gate_skip": ("bench.gate_skip", "training steps whose closed channels are skipped"),
    "conv": ("bench.conv", "sparse convolutions against dense ones, batch norm folded and ReLU"),
    "gpu": ("bench.gpu", "every CUDA kernel on the GPU at hand: correctness, then rivals"),
    "static": ("bench.static", "the CUDA kernels without a GPU: registers, traffic, budgets"),
    "costs": ("bench.costs", "the nm kernels' cost model: fit and write csrc/core/nm_costs.h"),
    "demo": ("bench.demo", "train a character GPT, prune it, run it faster"),
    "digits": ("bench.digits", "an MLP on digits at 90 %% block sparsity"),
    "methods": (
        "bench.methods.ladder",
        "the papers' pruning methods on real data, with control arms",
    ),
    "readme": ("bench.readme", "write the tables of README.md from bench/results"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((a for a in (sys.argv[1:] if argv is None else argv) if a in COMMANDS), None)
    for name, (module, help_) in COMMANDS.items():
        sub = commands.add_parser(name, help=help_, description=help_)
        if (
            name == chosen
        ):  # only this one is imported: one broken benchmark does not stop the others
            importlib.import_module(module).add_arguments(sub)
    args = parser.parse_args(argv)
    try:
        importlib.import_module(COMMANDS[args.command][0]).run(args)
    except GateError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
