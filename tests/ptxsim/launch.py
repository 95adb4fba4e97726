"""What a launch consists of before it runs: lanes, special registers, variables, parameters."""

from __future__ import annotations

import itertools

import numpy as np

from .memory import ALLOCATED, WRITTEN, Pointer, Space
from .syntax import Kernel, Module


class LaunchError(ValueError):
    """The launch itself is wrong: argument count, block size, shared memory."""


def dim3(dims) -> tuple[int, int, int]:
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    return dims + (1,) * (3 - len(dims))


class Launch:
    """The fixed side of a launch: who its lanes are and where its variables lie."""

    def __init__(self, device, module: Module, kernel: Kernel, grid, block, args, shared: int):
        self.device, self.module, self.kernel = device, module, kernel
        self.grid, self.block = grid, block
        threads, blocks = int(np.prod(block)), int(np.prod(grid))
        if threads > 1024:
            raise LaunchError(f"{threads} threads in a block; the limit is 1024")
        required = kernel.directives.get("reqntid")
        if required and int(np.prod(required)) != threads:
            raise LaunchError(f"kernel requires {required} threads, got {block}")
        self.threads, self.blocks = threads, blocks
        n = self.lanes = threads * blocks
        lane = np.arange(n)
        self.every = lane  # `lanes is run.every`: the whole grid, so that nothing need be picked
        self.block_of = lane // threads
        self.thread_of = lane % threads
        self.warps_per_block = -(-threads // 32)
        self.warp_of = self.block_of * self.warps_per_block + self.thread_of // 32
        self.lane_in_warp = (self.thread_of % 32).astype(np.uint32)
        self.warps = self.warps_per_block * blocks
        self.special = self._special_registers()
        self.registers = {
            r.name: np.zeros(n, bool if r.size == 1 else f"u{r.size}")
            for r in kernel.registers.values()
            if r.size <= 8
        }
        self._place_variables(shared)
        self.param = self._pack(args)

    def pick(self, array: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        return array if lanes is self.every else array[lanes]

    def _special_registers(self) -> dict[str, np.ndarray]:
        out = {}
        bx, by, bz = self.block
        gx, gy, gz = self.grid
        t, b = self.thread_of, self.block_of
        for axis, tv, bv, tn, bn in (
            ("x", t % bx, b % gx, bx, gx),
            ("y", t // bx % by, b // gx % gy, by, gy),
            ("z", t // (bx * by), b // (gx * gy), bz, gz),
        ):
            out[f"%tid.{axis}"], out[f"%ctaid.{axis}"] = tv, bv
            out[f"%ntid.{axis}"], out[f"%nctaid.{axis}"] = (
                np.full(self.lanes, tn),
                np.full(self.lanes, bn),
            )
            out[f"%cluster_ctaid.{axis}"] = np.zeros(self.lanes)
            out[f"%cluster_nctaid.{axis}"] = np.ones(self.lanes)
        out["%cluster_ctarank"] = np.zeros(self.lanes)
        out["%laneid"], out["%warpid"] = self.lane_in_warp, self.thread_of // 32
        for name, op in (
            ("lt", np.less),
            ("le", np.less_equal),
            ("gt", np.greater),
            ("ge", np.greater_equal),
            ("eq", np.equal),
        ):
            mask = op(np.arange(32)[None, :], self.lane_in_warp[:, None])
            out[f"%lanemask_{name}"] = (
                mask.astype(np.uint64) << np.arange(32, dtype=np.uint64)
            ).sum(1)
        return {k: v.astype(np.uint32) for k, v in out.items()} | {
            "%clock64": np.zeros(self.lanes, np.uint64),
            "%clock": np.zeros(self.lanes, np.uint32),
            "%globaltimer": np.zeros(self.lanes, np.uint64),
        }

    def _place_variables(self, dynamic_shared: int) -> None:
        self.symbols: dict[str, tuple[str, int]] = {}
        shared_top = local_top = 0
        dynamic = []
        for var in itertools.chain(self.module.variables.values(), self.kernel.variables.values()):
            if var.space == "shared" and var.size:
                shared_top = -(-shared_top // var.align) * var.align
                self.symbols[var.name] = ("shared", shared_top)
                shared_top += var.size
            elif var.space == "shared":
                dynamic.append(var.name)
            elif var.space == "local":
                local_top = -(-local_top // var.align) * var.align
                self.symbols[var.name] = ("local", local_top)
                local_top += var.size
            else:
                key = (id(self.module), var.name)
                if key not in self.device._symbols:
                    data = np.frombuffer(var.data or bytes(var.size), np.uint8)
                    self.device._symbols[key] = self.device.memory.upload(
                        np.pad(data, (0, max(0, var.size - data.size)))
                    ).address
                self.symbols[var.name] = ("global", self.device._symbols[key])
        shared_top = -(-shared_top // 128) * 128
        for name in dynamic:
            self.symbols[name] = ("shared", shared_top)
        self.shared_bytes = shared_top + dynamic_shared
        if self.shared_bytes > 232_448:
            raise LaunchError(
                f"{self.shared_bytes} bytes of shared memory; no GPU has more than 232448 per block"
            )
        self.special["%dynamic_smem_size"] = np.full(self.lanes, dynamic_shared, np.uint32)
        self.special["%total_smem_size"] = np.full(self.lanes, self.shared_bytes, np.uint32)
        self.shared_stride = -(-max(self.shared_bytes, 16) // 128) * 128
        self.shared = Space(
            "shared",
            self.shared_stride * self.blocks,
            True,
            poison=0xFF,
            initcheck=self.device.initcheck,
        )
        if self.shared_bytes < self.shared_stride:
            self.shared.shadow.reshape(self.blocks, -1)[:, self.shared_bytes :] = 0
        self.local_stride = -(-max(local_top, 16) // 16) * 16
        self.local = Space("local", self.local_stride * self.lanes, True, poison=0xFF)

    def _pack(self, args) -> Space:
        params = self.kernel.params
        args = list(args)
        if len(args) > len(params):
            raise LaunchError(f"{self.kernel.name} takes {len(params)} parameters, got {len(args)}")
        args += [0] * (len(params) - len(args))  # Triton appends scratch pointers
        end = max((p.offset + p.size for p in params), default=0)
        if end > 32_764:
            raise LaunchError(f"{end} bytes of parameters; the limit is 32764")
        space = Space("param", end, True)
        for p, arg in zip(params, args, strict=True):
            if isinstance(arg, Pointer):
                raw = arg.address.to_bytes(p.size, "little")
            elif isinstance(arg, (bytes, bytearray)):
                raw = bytes(arg)
            elif isinstance(arg, float):
                raw = np.array(arg, {4: np.float32, 8: np.float64}[p.size]).tobytes()
            else:
                raw = (int(arg) & ((1 << 8 * p.size) - 1)).to_bytes(p.size, "little")
            if len(raw) != p.size:
                raise LaunchError(f"parameter {p.name} is {p.size} bytes, got {len(raw)}")
            space.bytes[p.offset : p.offset + p.size] = np.frombuffer(raw, np.uint8)
            self.symbols[p.name] = ("param", p.offset)
        space.shadow[:] = ALLOCATED | WRITTEN
        return space
