"""Warp-collective instructions on registers: shuffles, votes, reductions, and ldmatrix."""

from __future__ import annotations

import numpy as np

from .dispatch import op
from .memory import MemoryFault
from .syntax import Imm, Pair, Vec
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


def _matrix(run, lanes: np.ndarray, values, dtype) -> np.ndarray:
    """[warps, 32] with `values` at `lanes` and 0 elsewhere."""
    out = np.zeros((run.warps, 32), dtype)
    out[run.warp_of[lanes], run.lane_in_warp[lanes]] = values
    return out


def _bits(matrix: np.ndarray) -> np.ndarray:
    """[warps, 32] booleans -> [warps] words."""
    return (matrix.astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(1, dtype=np.uint32)


def warp_sync(step, mask_operand, run, here: int):
    """Run `step` once every living thread of the mask is here; until then those that are wait."""
    mask = source(mask_operand, "u32", run)

    def gathered(active, group):
        if active is not run.every:
            warp = run.warp_of[active]
            present = _bits(_matrix(run, active, True, bool))[warp]
            alive = _bits(_matrix(run, run.every, run.alive(), bool))[warp]
            wanted = mask(active)
            if not (wanted >> run.lane_in_warp[active] & 1).all():
                raise Divergence("a thread executes a warp instruction whose mask leaves it out")
            missing = wanted & alive & ~present != 0
            if missing.any():
                if not missing.all():
                    step(active[~missing], group)
                return run.gather(active[missing], group, here)
        return step(active, group)

    return gathered


ALL = Imm(0xFFFFFFFF)


@op("shfl")
def _shfl(i, run, here):
    mode = next(part for part in i.opcode if part in ("up", "down", "bfly", "idx"))
    pair = isinstance(i.operands[0], Pair)
    put = destination(i.operands[0].first if pair else i.operands[0], "b32", run)
    put_valid = destination(i.operands[0].second, "pred", run) if pair else None
    a, b, c = (source(o, "u32", run) for o in i.operands[1:4])

    def step(active, group):
        warp = run.pick(run.warp_of, active)
        lane = run.pick(run.lane_in_warp, active).astype(np.int64)
        bval, cval = b(active).astype(np.int64) & 31, c(active).astype(np.int64)
        segment, clamp = (cval >> 8) & 31, cval & 31
        low, high = lane & segment, (lane & segment) | (clamp & ~segment & 31)
        from_ = {
            "up": lane - bval,
            "down": lane + bval,
            "bfly": lane ^ bval,
            "idx": low | (bval & ~segment & 31),
        }[mode]
        valid = from_ >= high if mode == "up" else from_ <= high
        from_ = np.where(valid, from_, lane)
        values = _matrix(run, active, a(active), np.uint32)
        if active is not run.every or run.lanes != 32 * run.warps:
            here_ = _matrix(run, active, True, bool)
            if not here_[warp, from_].all():
                raise Divergence("shfl reads a thread that does not take part")
        put(active, values[warp, from_])
        if put_valid:
            put_valid(active, valid)

    return warp_sync(step, i.operands[4], run, here)


@op("vote")
def _vote(i, run, here):
    mode = next(part for part in i.opcode if part in ("ballot", "all", "any", "uni"))
    get = source(i.operands[1], "pred", run)
    put = destination(i.operands[0], "b32" if mode == "ballot" else "pred", run)

    def step(active, group):
        ones = _bits(_matrix(run, active, get(active), bool))
        every = _bits(_matrix(run, active, True, bool))
        result = {
            "ballot": ones,
            "all": ones == every,
            "any": ones != 0,
            "uni": (ones == every) | (ones == 0),
        }[mode]
        put(active, result[run.pick(run.warp_of, active)])

    return warp_sync(step, i.operands[2], run, here)


@op("activemask")
def _activemask(i, run, here):
    put = destination(i.operands[0], "b32", run)

    def step(active, group):
        here_ = _bits(_matrix(run, active, True, bool))
        put(active, here_[run.pick(run.warp_of, active)])

    return step


@op("match")
def _match(i, run, here):
    pair = isinstance(i.operands[0], Pair)
    put = destination(i.operands[0].first if pair else i.operands[0], "b32", run)
    put_all = destination(i.operands[0].second, "pred", run) if pair else None
    get = source(i.operands[1], type_of(i.opcode), run)

    def step(active, group):
        warp = run.pick(run.warp_of, active)
        value = get(active)
        values = _matrix(run, active, value, value.dtype)
        there = _matrix(run, active, True, bool)
        same = (values[warp] == value[:, None]) & there[warp]
        everyone = (same == there[warp]).all(1)
        put(active, _bits(same) if "any" in i.opcode else np.where(everyone, _bits(same), 0))
        if put_all:
            put_all(active, everyone)

    return warp_sync(step, i.operands[2], run, here)


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
        warp = run.pick(run.warp_of, active)
        first = np.flatnonzero(np.concatenate(([True], warp[1:] != warp[:-1])))
        totals = reduce.reduceat(get(active), first, dtype=NP[type_])
        put(active, np.repeat(totals, np.diff(np.append(first, warp.size))))

    return warp_sync(step, i.operands[2], run, here)


@op("elect")
def _elect(i, run, here):
    put = destination(i.operands[0].second, "pred", run)
    put_leader = destination(i.operands[0].first, "b32", run)

    def step(active, group):
        there = _matrix(run, active, True, bool)
        leader = there.argmax(1).astype(np.uint32)[run.pick(run.warp_of, active)]
        put(active, run.pick(run.lane_in_warp, active) == leader)
        put_leader(active, leader)

    return warp_sync(step, i.operands[1], run, here)


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

    return warp_sync(step, ALL, run, here)


def _transposed(words: np.ndarray) -> np.ndarray:
    """8 x 8 tiles of halves, as [warps, tiles, 32 words], each transposed."""
    halves = words.view(np.uint16).reshape(*words.shape[:2], 8, 8)
    turned = np.ascontiguousarray(halves.transpose(0, 1, 3, 2))
    return turned.reshape(*words.shape[:2], 64).view(np.uint32)
