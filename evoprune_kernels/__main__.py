"""``python -m evoprune_kernels info | convert | bench-model``.

info          what was built and loaded, the ISA level, and which implementation every op uses and why
convert       a safetensors checkpoint -> a packed one, and back with --unpack
bench-model   time a model dense and optimised for inference
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import importlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import safetensors.torch
import torch
from torch import Tensor, nn

import evoprune_kernels as ek
from evoprune_kernels import _ext, _select, formats, measure, ops
from evoprune_kernels.formats import checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors of the user are one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="evoprune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_info(commands.add_parser("info", help="what was built, loaded and chosen, and why not"))
    _add_convert(
        commands.add_parser("convert", help="a checkpoint's weights to a packed checkpoint")
    )
    _add_bench(commands.add_parser("bench-model", help="time a model dense and optimised"))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        print(f"evoprune {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


# ---- info ------------------------------------------------------------------------------------------------------------


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_info)


def info() -> dict[str, Any]:
    """Versions, native libraries, ISA levels, and op x implementation, as plain values.

    Example:
        >>> from evoprune_kernels.__main__ import info
        >>> info()["ops"]["select_nm"]["chosen"] in ("cpu", "reference")
        True
    """
    libraries = {
        name: {"loaded": name not in _ext.reasons, "reason": _ext.reasons.get(name, "")}
        for name in dict.fromkeys(("_cpu", "_native", "triton", *_ext.reasons))
    }
    build = _ext.native.build_info() if _ext.native is not None else {}
    return {
        "versions": {
            "evoprune_kernels": ek.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "machine": measure.machine_info(),
        "libraries": libraries,
        "build": dict(build),
        "isa": {"in_use": _ext.isa_level(), "available": _ext.isa_levels()},
        "formats": {kind.__name__: list(_field_names(kind)) for kind in formats.FORMATS},
        "ops": {name: _op_info(op) for name, op in ops.OPS.items()},
    }


def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(kind.__dataclass_fields__)  # type: ignore[attr-defined]


def _op_info(op: ops.Op) -> dict[str, Any]:
    """What an op does with CPU tensors, why no other way, and why it has no CUDA or Triton kernel (empty: it has)."""
    reasons = op.reasons()
    forced = _select.FORCED.get(op.name)
    on_gpu = {
        "cuda": op.reasons(_select.CUDA).get(_select.CUDA, ""),
        "triton": op.triton_reasons().get(_select.TRITON, ""),
    }
    try:
        chosen = _select.choose(op.name, "cpu", forced, reasons)
    except RuntimeError as error:
        return {"chosen": "none", "others": {str(forced): str(error)}, **on_gpu}
    why = f"EVOPRUNE_IMPL asks for {forced}" if forced else f"{chosen} comes first"
    rows = (_select.CPU, _select.REFERENCE)
    return {
        "chosen": chosen,
        "others": {name: reasons.get(name, why) for name in rows if name != chosen},
        **on_gpu,
    }


def _without(kind: str, infos: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Reason -> the ops that have no kernel of a kind for it."""
    found: dict[str, list[str]] = {}
    for name, op in infos.items():
        if op[kind]:
            found.setdefault(op[kind], []).append(name)
    return found


def _run_info(args: argparse.Namespace) -> None:
    facts = info()
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    print("  ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    machine = facts["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads")
    for name, library in facts["libraries"].items():
        print(f"{name}: {'loaded' if library['loaded'] else 'not loaded: ' + library['reason']}")
    print("build: " + (", ".join(f"{k} {v}" for k, v in facts["build"].items()) or "unknown"))
    levels = ", ".join(facts["isa"]["available"]) or "none"
    print(f"ISA level: {facts['isa']['in_use']} (available: {levels})\n")
    width = max(map(len, facts["ops"]))
    print(f"{'op':{width}}  on the CPU  not chosen")
    for name, op in facts["ops"].items():
        others = "; ".join(f"{other}: {reason}" for other, reason in op["others"].items())
        print(f"{name:{width}}  {op['chosen']:10}  {others}")
    print("\nop on CUDA tensors: CUDA C++ where it is loaded, else Triton, else plain torch")
    for kind, title in (("cuda", "CUDA C++"), ("triton", "Triton")):
        for reason, names in _without(kind, facts["ops"]).items():
            print(f"no {title} kernel ({reason}): {', '.join(names)}")


# ---- convert ---------------------------------------------------------------------------------------------------------


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN.safetensors")
    parser.add_argument("target", metavar="OUT.safetensors")
    parser.add_argument("--pattern", help="n:m, block:RxC or unstructured")
    parser.add_argument(
        "--sparsity",
        type=float,
        help="share to remove by magnitude; default: keep what is not zero",
    )
    parser.add_argument(
        "--filter", nargs="+", default=["*"], metavar="GLOB", help="names to pack; default: all 2-D"
    )
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="GLOB", help="names to leave dense"
    )
    parser.add_argument(
        "--unpack", action="store_true", help="a packed checkpoint back to a dense one"
    )
    parser.set_defaults(run=_run_convert)


def _run_convert(args: argparse.Namespace) -> None:
    if args.unpack == bool(args.pattern):
        raise ValueError("expected either --pattern or --unpack")
    if Path(args.source).resolve() == Path(args.target).resolve():
        raise ValueError(
            f"expected another file to write than the one to read, got {args.target} twice"
        )
    if args.unpack:
        dense, report = _unpack_all(checkpoint.load(args.source))
        safetensors.torch.save_file(dense, args.target, checkpoint.read_metadata(args.source))
    else:
        tensors, metadata = _read_plain(args.source)
        report = _pack_all(tensors, args)
        checkpoint.save(args.target, tensors, metadata)
    for name, text in report.items():
        print(f"  {name}: {text}")
    before, after = (Path(p).stat().st_size for p in (args.source, args.target))
    print(f"{args.target}: {after:,} bytes, from {before:,} ({after / before:.2f})")


def _read_plain(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors and the metadata of an ordinary safetensors file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    if any(key.startswith("evoprune.") for key in metadata):
        raise ValueError(f"{path}: packed already; --unpack makes it dense")
    return tensors, metadata


def _pack_all(tensors: dict[str, Any], args: argparse.Namespace) -> dict[str, str]:
    """Replace the chosen matrices by packed weights, in place; name -> what happened."""
    done = {}
    for name, tensor in tensors.items():
        reason = _why_dense(name, tensor, args)
        if reason:
            done[name] = f"dense: {reason}"
            continue
        try:
            mask = _mask(tensor, formats.parse_pattern(args.pattern), args.sparsity)
            tensors[name] = packed = formats.pack(tensor, args.pattern, mask=mask)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        kept = int(packed.unpack().count_nonzero()) / max(1, tensor.numel())
        done[name] = f"{'x'.join(map(str, tensor.shape))} -> {args.pattern}, density {kept:.2f}"
    if not any("->" in text for text in done.values()):
        raise ValueError(
            f"no tensor of {args.source} was packed: expected a 2-D one that the globs choose"
        )
    return done


def _why_dense(name: str, tensor: Any, args: argparse.Namespace) -> str:
    if not isinstance(tensor, Tensor):
        return f"already packed ({type(tensor).__name__})"
    if tensor.dim() != 2:
        return f"{tensor.dim()} dimensions"
    if not tensor.is_floating_point():
        return f"dtype {tensor.dtype}"
    if not any(fnmatch.fnmatchcase(name, glob) for glob in args.filter):
        return "not chosen by --filter"
    return "--exclude" if any(fnmatch.fnmatchcase(name, glob) for glob in args.exclude) else ""


def _mask(weight: Tensor, pattern: formats.Pattern, sparsity: float | None) -> Tensor | None:
    """By magnitude; None keeps what is not zero, where the weight obeys the pattern already."""
    scores = weight.float().abs()
    if isinstance(pattern, formats.NM):
        return ops.select_nm(scores, pattern.n, pattern.m, shared=pattern.shared)
    if sparsity is None:
        return None
    if isinstance(pattern, formats.Block):
        return ops.select_block(scores, pattern.rows, pattern.columns, 1.0 - sparsity)
    return ops.select_topk(scores, 1.0 - sparsity)


def _unpack_all(
    tensors: Mapping[str, formats.PackedWeight | Tensor],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors dense; and name -> what happened, of those that were packed."""
    dense, done = {}, {}
    for name, packed in tensors.items():
        if isinstance(packed, Tensor):
            dense[name] = packed
        else:
            dense[name] = packed.unpack()
            done[name] = f"{type(packed).__name__} -> {'x'.join(map(str, packed.shape))}"
    if not done:
        raise ValueError("nothing to unpack: the checkpoint holds no packed weight")
    return dense, done


# ---- bench-model -----------------------------------------------------------------------------------------------------


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODULE:FUNCTION | DIRECTORY",
        help="a function that returns (model, example_inputs), or a folder with a transformers config.json",
    )
    parser.add_argument(
        "--pattern",
        default="2:4",
        help="pruned to by magnitude; 'none' takes the model's own zeros",
    )
    parser.add_argument("--sparsity", type=float)
    parser.add_argument(
        "--batch", type=int, default=1, help="rows of tokens (a transformers folder)"
    )
    parser.add_argument(
        "--tokens", type=int, default=16, help="tokens a row (a transformers folder)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--min-speedup", type=float, default=1.05)
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.set_defaults(run=_run_bench)


def _run_bench(args: argparse.Namespace) -> None:
    model, inputs = _load_model(args)
    model.eval()
    with measure.threads(args.threads):
        if args.pattern != "none":
            print(ek.convert(model, args.pattern, sparsity=args.sparsity))
            ek.export(model)
        sparse = copy.deepcopy(model)
        report = ek.optimize_for_inference(sparse, inputs, min_speedup=args.min_speedup)
        print(report)
        calls = {"dense": lambda: _call(model, inputs), "sparse": lambda: _call(sparse, inputs)}
        with torch.inference_mode():
            samples = measure.interleave(measure.add_control(calls, "dense"), rounds=args.rounds)
    ratio, control = samples.ratio("dense", "sparse"), samples.control("dense")
    dense, faster = samples.timing("dense").median, samples.timing("sparse").median
    print(
        f"\nwhole model, {args.threads} thread: masked dense {dense * 1e3:.3f} ms, optimised {faster * 1e3:.3f} ms"
    )
    print(f"speed-up {ratio}; A/A {control}")
    if args.json:
        record = {
            "label": "measured",
            "machine": measure.machine_info(),
            "threads": args.threads,
            "layers": report.to_dict(),
            "seconds": {name: samples.timing(name).to_dict() for name in samples.samples},
            "speedup": ratio.to_dict(),
            "control": control.to_dict(),
        }
        Path(args.json).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def _call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _load_model(args: argparse.Namespace) -> tuple[nn.Module, Any]:
    if Path(args.model).is_dir():
        return _transformers_model(args)
    module, _, function = args.model.partition(":")
    if not function:
        raise ValueError(f"expected MODULE:FUNCTION or a folder that exists, got {args.model!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    factory = getattr(importlib.import_module(module), function, None)
    if not callable(factory):
        raise ValueError(f"{module} has no function {function!r}")
    made = factory()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise TypeError(
            f"expected {args.model} to return (model, example_inputs), got {type(made).__name__}"
        )
    model, inputs = made
    return model, (inputs,) if isinstance(inputs, Tensor) else inputs


def _transformers_model(args: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The folder's model: its weights where it has them, random ones otherwise (which is said)."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(args.model, local_files_only=True)
    if any(Path(args.model).glob("*.safetensors")):
        model = AutoModel.from_pretrained(args.model, local_files_only=True)
    else:
        print(f"{args.model}: no *.safetensors, so the weights are random")
        model = AutoModel.from_config(config)
    tokens = torch.randint(
        config.vocab_size, (args.batch, args.tokens), generator=torch.Generator().manual_seed(0)
    )
    return model, {"input_ids": tokens}


if __name__ == "__main__":
    sys.exit(main())
