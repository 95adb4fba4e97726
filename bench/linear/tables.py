"""What is made of a record: the full page, and the compact table of README.md with its marks.

``speed-up``: time of dense ``F.linear`` in float32 over the contender's, round by round, the median. The *best peer* of
a cell is the fastest one whose arithmetic is not narrower than ours: float32 for float32, bfloat16 too for bfloat16
weights, int8 too for int8 weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bench import report, targets
from bench.linear.ours import stored_of
from bench.linear.timing import INT8
from bench.peers import ADAPTERS
from bench.peers.adapter import PRECISIONS
from bench.roofline import lines

HEADER = (
    "out x in",
    "pattern",
    "tokens",
    "weights",
    "dense",
    "ours",
    "speed-up (p20-p80)",
    "best peer",
    "int8 dense",
    "roof",
    "A/A",
)


def precision_of(entry: Mapping[str, Any]) -> str:
    """The precision of our contender in this cell."""
    return stored_of(entry["pattern"]).precision


def speed(entry: Mapping[str, Any], name: str) -> float | None:
    """The median speed-up of a contender, or None where it was not timed."""
    found = entry["contenders"].get(name)
    return None if found is None else found["speedup"]["median"]


def best_peer(entry: Mapping[str, Any]) -> tuple[str, float] | None:
    """The fastest timed peer that is not narrower than ours, with its speed-up."""
    allowed = PRECISIONS[: PRECISIONS.index(precision_of(entry)) + 1]
    peers = {
        name: entry["contenders"][name]["speedup"]["median"]
        for name, adapter in ADAPTERS.items()
        if name in entry["contenders"] and adapter.precision in allowed
    }
    return max(peers.items(), key=lambda item: item[1], default=None)


def row(entry: Mapping[str, Any]) -> list[str]:
    """The cells of one row of the full table; a speed-up below the best peer is marked with ``p``."""
    found = entry["contenders"]
    ours, control = found["ours"]["speedup"], found["dense (A/A)"]["speedup"]
    best, int8, roof = best_peer(entry), speed(entry, INT8), entry.get("roof")
    mark = " p" if peer_over_ours(entry) > 1 else ""
    return [
        entry["shape"],
        entry["pattern"],
        str(entry["tokens"]),
        entry["weights"],
        report.duration(found["dense"]["seconds"]["median"]),
        report.duration(found["ours"]["seconds"]["median"]),
        f"{ours['median']:.2f} ({ours['p20']:.2f}-{ours['p80']:.2f}){mark}",
        f"{best[1]:.2f} {best[0]}" if best else "-",
        f"{int8:.2f}" if int8 else "-",
        f"{roof['fraction']:.0%} {roof['bound']}" if roof else "-",
        f"{control['p20']:.2f}-{control['p80']:.2f}",
    ]


def peer_row(entry: Mapping[str, Any]) -> list[str]:
    """One row of the table of all peers: speed-ups; ``<`` one pass of a peer that was too slow to be timed."""
    cells = [entry["shape"], entry["pattern"], str(entry["tokens"]), f"{speed(entry, 'ours'):.2f}"]
    for name in ADAPTERS:
        found = speed(entry, name)
        if found is not None:
            cells.append(f"{found:.2f}")
        else:
            slow = entry.get("too_slow", {}).get(name)
            cells.append("-" if slow is None else f"{slow:.2f} once")
    return cells


def page(record: Mapping[str, Any], source: str) -> str:
    """The full Markdown page of a record."""
    results, isa = record["results"], record["machine"]["isa"]
    entries = results["cells"]
    peers = results.get("peers", {})
    timed = [name for name in ADAPTERS if any(name in e["contenders"] for e in entries)]
    parts = [
        f"# One linear layer, {isa}",
        "Made by `python -m bench readme` from the JSON file beside it. Times are of one layer. *cold*: a stack of "
        "layers whose dense weights exceed the last-level cache; *hot*: one layer again and again. Speed-ups: dense "
        "float32 `F.linear` over the contender, medians of interleaved rounds, **measured**. `p`: the best peer of "
        "at least our precision is faster. *roof*: the time that our packed bytes or FLOP need at the **measured** "
        "limits over our measured time, **computed**; of int8 and bfloat16 weights too, whose sums are float32.",
        source,
        summary(record),
        "## Every cell",
        report.table(HEADER, [row(entry) for entry in entries]),
    ]
    if roof := results.get("roofline"):
        parts.insert(4, lines(roof))
    if timed:
        header = ("out x in", "pattern", "tokens", "ours", *ADAPTERS)
        text = report.table(header, [peer_row(entry) for entry in entries])
        parts += [
            "## Every peer: speed-up over dense",
            "`once`: one pass showed that it cannot win.",
            text,
        ]
    if peers:
        listed = [[name, reason] for name, reason in peers.items()] + left_out(entries)
        parts += [
            "## Which peers were there",
            report.table(("peer", "present, or why not"), listed),
        ]
    return "\n\n".join(parts) + "\n"


def left_out(entries: list[Mapping[str, Any]]) -> list[list[str]]:
    """``[peer, reason and number of cells]`` of the peers that were present and failed in some cells."""
    reasons = Counter(item for entry in entries for item in entry.get("left_out", {}).items())
    return [[name, f"in {count} cells: {reason}"] for (name, reason), count in reasons.items()]


def summary(record: Mapping[str, Any], table: targets.Targets | None = None) -> str:
    """The compact table: the lowest median speed-up over the targets' shapes, its marks, and what they mean."""
    table = table or targets.load()
    isa = record["machine"]["isa"]
    rows, notes = [], []
    for wanted in table.rows:
        cells = []
        for column, target in zip(table.columns, wanted.targets, strict=True):
            found = matching(record, wanted, column, table.shapes)
            text, note = cell_text(found, target, wanted.over)
            cells.append(text)
            if note:
                reason = table.reason(isa, wanted, column) or roof_reason(found, target)
                notes.append(f"- {wanted.name}, {column}: {note}; {reason}")
        if any(cell != "-" for cell in cells):
            rows.append([wanted.name, *cells])
    header = ("pattern", *(str(column) for column in table.columns))
    measured = {entry["shape"] for entry in record["results"]["cells"]}
    shapes = [shape for shape in table.shapes if shape in measured]
    missing = [shape for shape in table.shapes if shape not in measured]
    legend = (
        f"Lowest median speed-up over dense float32 `F.linear` of the shapes {', '.join(shapes)}"
        f"{' (not measured: ' + ', '.join(missing) + ')' if missing else ''}. "
        "`t`: below its target (`bench/targets.toml`); `p`: the best peer of a shape is faster there; "
        "`i`: torch's int8 dynamic linear is."
    )
    parts = [report.table(header, rows), legend]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def matching(
    record: Mapping[str, Any], wanted: targets.Row, column: targets.Column, shapes: tuple[str, ...]
) -> list[Mapping[str, Any]]:
    """The record's cells that one cell of the compact table speaks for."""
    return [
        entry
        for entry in record["results"]["cells"]
        if entry["pattern"] in wanted.patterns
        and entry["shape"] in shapes
        and (entry["tokens"], entry["weights"]) == (column.tokens, column.weights)
    ]


def ratio_over(entry: Mapping[str, Any], over: str = "dense") -> float | None:
    """The median time of ``over`` over ours, None where that was not timed."""
    if over == "dense":
        return speed(entry, "ours")
    found = entry.get("over", {}).get(over)
    return None if found is None else found["median"]


def cell_text(
    found: list[Mapping[str, Any]], target: float | None, over: str = "dense"
) -> tuple[str, str]:
    """The text of a compact cell, and what its ``t`` and ``p`` say; ``-`` where nothing was measured."""
    found = [entry for entry in found if ratio_over(entry, over) is not None]
    if not found:
        return "-", ""
    lowest = worst(found, over)
    ratio = ratio_over(lowest, over) or 0.0
    marks, notes = "", []
    if target is not None and ratio < target:
        marks += "t"
        notes.append(f"{ratio:.2f} ({name_of(lowest)}), target {target:g}")
    if lost := [entry for entry in found if peer_over_ours(entry) > 1]:
        most = max(lost, key=peer_over_ours)
        name, best = best_peer(most) or ("", 0.0)
        more = f" and {len(lost) - 1} more" * (len(lost) > 1)
        marks += "p"
        notes.append(
            f"{name} {best:.2f} over ours {speed(most, 'ours'):.2f} ({name_of(most)}{more})"
        )
    if any((speed(e, INT8) or 0.0) > e["contenders"]["ours"]["speedup"]["median"] for e in found):
        marks += "i"
    return f"{ratio:.2f} {marks}".strip(), "; ".join(notes)


def peer_over_ours(entry: Mapping[str, Any]) -> float:
    """How much faster than ours the best peer is; 0 where there is none."""
    best = best_peer(entry)
    return best[1] / entry["contenders"]["ours"]["speedup"]["median"] if best else 0.0


def worst(found: list[Mapping[str, Any]], over: str = "dense") -> Mapping[str, Any]:
    """The cell in which ours gains least."""
    return min(found, key=lambda entry: ratio_over(entry, over) or 0.0)


def name_of(entry: Mapping[str, Any]) -> str:
    """Shape and pattern."""
    return f"{entry['shape']}, {entry['pattern']}"


def roof_reason(found: list[Mapping[str, Any]], target: float | None) -> str:
    """What the measured limits say about a cell that falls short."""
    roof = worst(found).get("roof")
    if not roof:
        return "no limits were measured with it"
    if stored_of(worst(found)["pattern"]).w8a8:
        return "no limit of integer arithmetic was measured"
    at_roof = f"{roof['speedup_at_roof']:.2f} at the limit of {roof['bound']}"
    if target is not None and roof["speedup_at_roof"] < target:
        return f"the machine's limits do not allow more than {at_roof}"
    return f"ours is at {roof['fraction']:.0%} of its roof ({at_roof})"
