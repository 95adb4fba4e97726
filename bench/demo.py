"""``make demo``: a character GPT learns Python's standard library, is pruned while it learns, and then runs faster.

Trains with ``ek.optim.AdamW(prune=...)`` beside a dense control, optimises the pruned model for inference, holds its
logits against the masked dense model, times both in interleaved rounds on one thread, and generates text. Everything
that is printed is also in ``bench/results/demo.json``; ``demo.png`` shows it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import evoprune_kernels as ek
from bench import digits, report
from bench import text as texts
from bench.char_gpt import CharGPT, generate
from bench.demo_plot import draw
from bench.demo_train import Plan, Trained, train
from bench.gate import Gate, GateError
from evoprune_kernels import measure
from tests.tolerance import FLOOR, max_error

PROMPT = "def read_lines(path):\n    "
SECONDS = 150
QUICK = {"width": 64, "layers": 1, "heads": 2, "context": 64, "rows": 2, "steps": 20}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench.demo``."""
    parser.add_argument(
        "--text", help="a file or a folder of text; default: Python's standard library"
    )
    parser.add_argument("--pattern", default="block:16x16")
    parser.add_argument("--sparsity", type=float, help="default: 0.75, or what n:m says")
    parser.add_argument("--importance", default="evolution")
    parser.add_argument("--steps", type=int, help=f"default: {Plan.steps}")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"of training, both runs; default: {Plan.steps} steps, fewer where they take over {SECONDS}",
    )
    parser.add_argument("--width", type=int, default=Plan.width)
    parser.add_argument("--layers", type=int, default=Plan.layers)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9, help="of the measurement")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds; a test of the program, not a figure"
    )
    parser.add_argument("--no-digits", action="store_true", help="leave out the second example")
    parser.add_argument("--json", help="default: bench/results/demo.json")
    parser.add_argument("--png", help="default: bench/results/demo.png")


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for, without looking at the clock."""
    sparsity = args.sparsity
    if sparsity is None and ":" not in args.pattern.removeprefix("block:"):
        sparsity = 0.75
    plan = Plan(
        args.pattern,
        sparsity,
        importance=args.importance,
        width=args.width,
        layers=args.layers,
        heads=max(1, args.width // 64),
        seed=args.seed,
    )
    if args.quick:
        plan = dataclasses.replace(plan, **QUICK)
    return dataclasses.replace(plan, steps=args.steps) if args.steps else plan


def fit_to_time(plan: Plan, text: texts.Text, seconds: float) -> Plan:
    """As many steps as ``seconds`` allow for both runs, by timing a few steps here."""
    model = CharGPT(plan.model_config())
    data = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model.loss(text.batch(plan.rows, plan.context, data)).backward()
        optimizer.step()

    once = measure.interleave({"step": step}, rounds=5, warmup=2).timing("step").median
    return dataclasses.replace(plan, steps=max(60, int(seconds / once / 1.75)))


def final_plan(args: argparse.Namespace, text: texts.Text) -> Plan:
    """The plan with its number of steps: as asked for, or as the time allows here."""
    plan = make_plan(args)
    if args.steps or args.quick:
        return plan
    fitted = fit_to_time(plan, text, args.seconds or SECONDS)
    if args.seconds:
        return fitted
    if fitted.steps < plan.steps:
        print(
            f"slow now: {fitted.steps} steps in place of {plan.steps} (--steps {plan.steps} insists)"
        )
        return fitted
    return plan


def progress(plan: Plan) -> Any:
    """A progress bar over both runs as ``tick(run, step, loss)``, with ``close()``."""
    from tqdm import tqdm

    bar = tqdm(total=2 * plan.steps - plan.start, unit="step", file=sys.stderr, dynamic_ncols=True)

    def tick(run: str, step: int, loss: float) -> None:
        bar.update()
        if step % 10 == 0:
            bar.set_description(f"{run}: loss {loss:.2f}", refresh=False)

    return tick, bar.close


def check_logits(masked: nn.Module, sparse: nn.Module, tokens: Tensor) -> dict[str, float]:
    """Both models' logits against the masked model in fp64, by the tolerance law.

    Raises:
        GateError: if the optimised model is further off than the law allows; nothing is timed then.
    """
    with torch.inference_mode():
        truth = copy.deepcopy(masked).double()(tokens)
        dense_error, sparse_error = (max_error(m(tokens), truth) for m in (masked, sparse))
    allowed = 2 * dense_error + FLOOR[torch.float32] * truth.abs().max().item()
    if not sparse_error <= allowed:
        raise GateError(f"logits differ from fp64 by {sparse_error:.2e}, allowed are {allowed:.2e}")
    return {"dense_error": dense_error, "sparse_error": sparse_error, "allowed": allowed}


def time_models(
    masked: CharGPT, sparse: CharGPT, held_out: Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    """Characters per second of the masked dense and the optimised model, one thread, interleaved, with A/A."""
    context = masked.config.context
    prompt = context // 4
    many = 2 if args.quick else 16
    new = {1: 4, many: 2} if args.quick else {1: 48, many: 48}
    jobs = {f"{rows} stream{'s' * (rows > 1)}": (rows, count) for rows, count in new.items()}
    found: dict[str, Any] = {}
    for name, (rows, count) in jobs.items():
        start = held_out[:rows, :prompt]
        found[name] = compare(
            {
                label: (lambda m=m, s=start, c=count: generate(m, s, c))
                for label, m in _pair(masked, sparse)
            },
            rows * count,
            args,
        )
    windows = held_out[:8]
    with torch.inference_mode():
        calls = {label: (lambda m=m: m(windows)) for label, m in _pair(masked, sparse)}
        found[f"reading {windows.numel()} characters"] = compare(calls, windows.numel(), args)
    return found


def _pair(masked: CharGPT, sparse: CharGPT) -> tuple[tuple[str, CharGPT], ...]:
    return ("dense", masked), ("sparse", sparse)


def compare(calls: dict[str, Any], characters: int, args: argparse.Namespace) -> dict[str, Any]:
    """Time ``dense``, its A/A control and ``sparse``; each call makes ``characters``."""
    contenders = measure.add_control(calls, "dense")
    with measure.threads(1):
        rounds = 3 if args.quick else args.rounds
        samples = measure.interleave(contenders, rounds=rounds, warmup=1)
    result: dict[str, Any] = {"noise": samples.noise("dense"), "characters": characters}
    for name in contenders:
        timing = samples.timing(name)
        result[name] = {
            "characters_per_second": characters / timing.median,
            "seconds": timing.to_dict(),
            "speedup": samples.ratio("dense", name).to_dict(),
        }
    return result


def speed_rows(speed: dict[str, Any]) -> list[list[str]]:
    """One row per job: characters per second before and after."""
    rows = []
    for name, job in speed.items():
        ratio, control = job["sparse"]["speedup"], job["dense (A/A)"]["speedup"]
        rows.append(
            [
                name,
                f"{job['dense']['characters_per_second']:.0f}",
                f"{job['sparse']['characters_per_second']:.0f}",
                f"{ratio['median']:.2f} ({ratio['p20']:.2f}-{ratio['p80']:.2f})",
                f"{control['p20']:.2f}-{control['p80']:.2f}",
            ]
        )
    return rows


SPEED_HEADER = ("job", "dense characters/s", "sparse characters/s", "speed-up (p20-p80)", "A/A")


def loss_lines(plan: Plan, trained: Trained) -> str:
    """The held-out losses, each with what it is."""
    loss = trained.loss
    return "\n".join(
        [
            "held-out loss, nats per character",
            f"  {loss['before_pruning']:.3f}  dense, at step {plan.start}, before pruning began",
            f"  {loss['dense_control']:.3f}  dense control, step {plan.steps}: same start, data, steps; torch's AdamW",
            f"  {loss['pruned']:.3f}  pruned to {plan.pattern}, step {plan.steps} ({len(trained.masks)} layers, "
            f"{share_pruned(trained):.0%} of their weights are zero)",
        ]
    )


def share_pruned(trained: Trained) -> float:
    """Share of zeros in the masks."""
    kept = sum(int(mask.sum()) for mask in trained.masks.values())
    return 1.0 - kept / max(1, sum(mask.numel() for mask in trained.masks.values()))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole demo; returns the record that is written."""
    began = time.perf_counter()
    text = texts.load(args.text, limit=300_000 if args.quick else 6_000_000)
    plan = final_plan(args, text)
    model_size = sum(p.numel() for p in CharGPT(plan.model_config()).parameters())
    print(
        f"text: {text.training.numel():,} characters of {text.source}, {text.validation.numel():,} held out"
    )
    print(
        f"model: {plan.layers} blocks of width {plan.width}, {model_size:,} parameters; {plan.steps} steps\n"
    )
    tick, close = progress(plan)
    try:
        trained = train(plan, text, tick)
    finally:
        close()
    print("\n" + loss_lines(plan, trained) + "\n")

    masked = trained.pruned.eval()
    held_out = text.held_out(16, plan.context)[:, :-1]
    sparse, inference = optimise(masked, held_out, plan)
    print(inference)
    logits = check_logits(masked, sparse, held_out[:4])
    print(
        f"\nlogits against fp64: masked dense {logits['dense_error']:.1e}, sparse {logits['sparse_error']:.1e} "
        f"(allowed {logits['allowed']:.1e})\n"
    )
    speed = time_models(masked, sparse, held_out, args)
    print(report.table(SPEED_HEADER, speed_rows(speed)))
    count = min(240, plan.context - len(PROMPT))
    sample = texts.decode(generate(sparse, texts.encode(PROMPT)[None], count, temperature=0.7)[0])
    print(f"\nthe sparse model writes:\n{PROMPT}{sample}\n")
    results = {
        "plan": plan.to_dict(),
        "text": {
            "source": text.source if args.text else "Python standard library",
            "files": text.files,
        },
        "parameters": model_size,
        "loss": trained.loss,
        "sparsity": share_pruned(trained),
        "history": {name: dataclasses.asdict(h) for name, h in trained.history.items()},
        "layers": inference.to_dict(),
        "logits": logits,
        "speed": speed,
        "sample": PROMPT + sample,
        "seconds": {"training": trained.seconds, "all": time.perf_counter() - began},
    }
    return finish(results, args)


def optimise(masked: CharGPT, held_out: Tensor, plan: Plan) -> tuple[CharGPT, Any]:
    """A copy of the pruned model with the layers that are faster sparse; timed at one character of 16 streams."""
    sparse = copy.deepcopy(masked)
    with measure.threads(1):
        inference = ek.optimize_for_inference(sparse, (held_out[:, :1],), min_speedup=1.05)
    return sparse, inference


def finish(results: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Write the JSON and the picture."""
    checked = Gate("passed", (), "the logits of this run, by the tolerance law", 0.0)
    record = report.build("demo", results, gate=checked, threads=1, quick=args.quick)
    path = report.write(record, args.json)
    print(path)
    print(draw(record, args.png or report.RESULTS / "demo.png"))
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m bench.demo``: the demo, then the digits."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        run(args)
        if not args.no_digits:
            print()
            digits.main(["--quick"] if args.quick else [])
    except GateError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
