"""Warp-collective instructions on registers: shuffles, votes, reductions, and ldmatrix."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .memory import MemoryFault
from .syntax import Pair, Vec
from .values import NP, Unsupported, address_of, destination, source, type_of


class Divergence(RuntimeError):
    """A warp-collective instruction reached by only part of the warp it needs."""


def whole_warps(run, active: np.ndarray) -> np.ndarray:
    """Lanes as [warps, 32], in lane order; every warp must be complete."""
    warp = run.pick(run.warp_of, active)
    if active.size % 32 or (warp.reshape(-1, 32) != warp[::32, None]).any():
        counts = np.unique(warp, return_counts=True)[1]
        raise Divergence(f"only {int(counts[counts != 32][0])} of 32 threads of a warp are here")
    return active.reshape(-1, 32)


def _by_warp(run, active):
    order = np.argsort(run.warp_of[active] * 32 + run.lane_in_warp[active], kind="stable")
    lanes = active[order]
    _, start, counts = np.unique(run.warp_of[lanes], return_index=True, return_counts=True)
    return [lanes[s : s + c] for s, c in zip(start, counts, strict=True)]


@op("shfl")
def _shfl(i, run, here):
    mode = i.opcode[2] if i.opcode[1] == "sync" else i.opcode[1]
    to = i.operands[0].first if isinstance(i.operands[0], Pair) else i.operands[0]
    put = destination(to, "b32", run)
    put_valid = (
        destination(i.operands[0].second, "pred", run) if isinstance(i.operands[0], Pair) else None
    )
    a, b, c = (source(o, "u32", run) for o in i.operands[1:4])

    def step(active, group):
        lane = run.lane_in_warp[active].astype(np.int64)
        bval, cval = b(active).astype(np.int64) & 31, c(active).astype(np.int64)
        segment, clamp = (cval >> 8) & 31, cval & 31
        low, high = lane & segment, (lane & segment) | (clamp & ~segment & 31)
        if mode == "up":
            from_, valid = lane - bval, lane - bval >= high
        elif mode == "down":
            from_, valid = lane + bval, lane + bval <= high
        elif mode == "bfly":
            from_, valid = lane ^ bval, (lane ^ bval) <= high
        else:
            from_, valid = low | (bval & ~segment & 31), (low | (bval & ~segment & 31)) <= high
        from_ = np.where(valid, from_, lane)
        lane_id = np.full((run.warp_size_of.size, 32), -1, np.int64)
        values = np.zeros((run.warp_size_of.size, 32), np.uint32)
        lane_id[run.warp_of[active], lane] = active
        values[run.warp_of[active], lane] = a(active)
        if (lane_id[run.warp_of[active], from_] < 0).any():
            raise Divergence("shfl reads a thread that does not take part")
        put(active, values[run.warp_of[active], from_])
        if put_valid:
            put_valid(active, valid)

    return step


@op("vote")
def _vote(i, run, here):
    mode = i.opcode[2] if i.opcode[1] == "sync" else i.opcode[1]
    get = source(i.operands[1], "pred", run)
    put = destination(i.operands[0], "b32" if mode == "ballot" else "pred", run)

    def step(active, group):
        true = get(active)
        index = {int(lane): k for k, lane in enumerate(active)}
        for lanes in _by_warp(run, active):
            votes = true[[index[int(lane)] for lane in lanes]]
            if mode == "ballot":
                bits = sum(
                    1 << int(run.lane_in_warp[lane])
                    for lane, vote in zip(lanes, votes, strict=True)
                    if vote
                )
                put(lanes, np.full(lanes.size, bits, np.uint32))
            else:
                put(
                    lanes,
                    np.full(
                        lanes.size,
                        {
                            "all": votes.all(),
                            "any": votes.any(),
                            "uni": votes.all() or not votes.any(),
                        }[mode],
                    ),
                )

    return step


@op("activemask")
def _activemask(i, run, here):
    put = destination(i.operands[0], "b32", run)

    def step(active, group):
        for lanes in _by_warp(run, active):
            put(
                lanes,
                np.full(lanes.size, sum(1 << int(l) for l in run.lane_in_warp[lanes]), np.uint32),
            )

    return step


@op("redux")
def _redux(i, run, here):
    type_ = type_of(i.opcode)
    reduce = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[i.opcode[2]]
    get, put = source(i.operands[1], type_, run), destination(i.operands[0], type_, run)

    def step(active, group):
        for lanes in _by_warp(run, active):
            put(lanes, np.full(lanes.size, reduce.reduce(get(lanes)), NP[type_]))

    return step


@op("elect")
def _elect(i, run, here):
    put = destination(i.operands[0].second, "pred", run)

    def step(active, group):
        for lanes in _by_warp(run, active):
            put(lanes, run.lane_in_warp[lanes] == run.lane_in_warp[lanes].min())

    return step


@op("ldmatrix", "stmatrix")
def _ldmatrix(i, run, here):
    store = i.opcode[0] == "stmatrix"
    trans = "trans" in i.opcode
    if "m8n8" not in i.opcode or "b16" not in i.opcode:
        raise Unsupported("ldmatrix shape")
    mem, registers = (i.operands[0], i.operands[1]) if store else (i.operands[1], i.operands[0])
    items = registers.items if isinstance(registers, Vec) else (registers,)
    address = address_of(mem, run)
    ends = [source(o, "b32", run) if store else destination(o, "b32", run) for o in items]

    def step(active, group):
        lanes = whole_warps(run, active)[:, : 8 * len(ends)]  # those that give row addresses
        at = address(active).reshape(-1, 32)[:, : 8 * len(ends)].ravel()
        if (at & 15).any():
            raise MemoryFault("ldmatrix row address is not 16-byte aligned")
        lanes = active if len(ends) == 4 else lanes.ravel()
        run.count_access("store" if store else "load", "shared", at, lanes, 16)
        if store:
            words = np.stack([get(active).reshape(-1, 32) for get in ends], 1)
            rows = _transposed(words) if trans else words
            run.store("shared", at, lanes, rows.view(np.uint64).reshape(-1, 2), 16)
            return
        words = run.load("shared", at, lanes, 16).view(np.uint32).reshape(-1, len(ends), 32)
        words = _transposed(words) if trans else words
        for k, put in enumerate(ends):  # lane l of tile k: row l / 4, word l % 4
            put(active, words[:, k].ravel())

    return step


def _transposed(words: np.ndarray) -> np.ndarray:
    """8 x 8 tiles of halves, as [warps, tiles, 32 words], each transposed."""
    halves = words.view(np.uint16).reshape(*words.shape[:2], 8, 8)
    turned = np.ascontiguousarray(halves.transpose(0, 1, 3, 2))
    return turned.reshape(*words.shape[:2], 64).view(np.uint32)
