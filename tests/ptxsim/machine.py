"""Runs a `Kernel` over a whole grid at once: every thread of the grid is a lane of numpy arrays.

Threads at the lowest program counter run together until they branch apart, meet the next
waiting group, or block at a barrier; so structured control flow reconverges by itself, and
a warp-collective instruction sees its whole warp (else it is an error, as on a GPU).
"""

from __future__ import annotations

import numpy as np

from . import isa_arith, isa_bits, isa_control, isa_convert, isa_memory, isa_mma
from .dispatch import compile_instr
from .isa_async import AsyncCopies
from .isa_warp import Divergence
from .launch import Launch, dim3
from .memory import (
    LOCAL_WINDOW,
    SHARED_WINDOW,
    WINDOW_SIZE,
    GlobalMemory,
    MemoryFault,
    Pointer,
    Space,
)
from .parse import parse
from .races import RaceCheck, RaceError
from .stats import Counting, Stats
from .syntax import Module
from .values import Unsupported

#: importing these modules registers their instructions with `dispatch`
INSTRUCTION_SETS = (isa_arith, isa_bits, isa_control, isa_convert, isa_memory, isa_mma)
RUNNING, WAITING, EXITED = 0, 1, 2
FAULTS = (MemoryFault, Divergence, RaceError, Unsupported)


class ExecutionError(RuntimeError):
    """A fault while running; the message names the PTX line and instruction."""


class Device:
    """A simulated GPU.

    memory: bytes of global memory; racecheck: raise on shared-memory accesses of two warps
    that no barrier orders; initcheck: raise on reads of bytes that nothing wrote; stats: count
    instructions and memory traffic (slower).
    """

    def __init__(
        self,
        memory: int = 1 << 26,
        racecheck: bool = True,
        initcheck: bool = True,
        stats: bool = True,
    ):
        self.memory = GlobalMemory(memory, initcheck)
        self.racecheck, self.initcheck, self.stats = racecheck, initcheck, stats
        self._symbols: dict[tuple[int, str], int] = {}

    def upload(self, array: np.ndarray) -> Pointer:
        return self.memory.upload(array)

    def empty(self, shape, dtype) -> Pointer:
        return self.memory.empty(shape, dtype)

    def launch(
        self,
        module: Module | str,
        name: str,
        grid,
        block,
        args,
        shared: int = 0,
        max_steps: int = 50_000_000,
    ) -> Stats:
        """Run one kernel to its end.

        grid, block: up to three ints; args: a Pointer, int, float or bytes per parameter;
        shared: dynamic shared memory in bytes. Returns the `Stats`.
        """
        if isinstance(module, str):
            module = parse(module)
        run = Run(self, module, module.kernels[name], dim3(grid), dim3(block), args, shared)
        run.execute(max_steps)
        return run.counts


class Run(Launch):
    """One launch while it runs: where each lane is, and what memory it sees."""

    def __init__(self, device: Device, module: Module, kernel, grid, block, args, shared: int):
        super().__init__(device, module, kernel, grid, block, args, shared)
        self.counting = Counting(self)
        self.count_access = self.counting.access
        self.counts = self.counting.counts
        self.pc = np.zeros(self.lanes, np.int64)
        self.status = np.zeros(self.lanes, np.int8)
        self.waits_on = np.zeros(self.lanes, np.int64)
        self.needs = np.zeros(self.lanes, np.int64)
        self.async_copies = AsyncCopies(self)
        self.races = RaceCheck(self) if device.racecheck else None
        self.program = [compile_instr(instr, self) for instr in kernel.code]

    def execute(self, max_steps: int) -> None:
        """Run until every lane has exited."""
        self.steps_left = max_steps
        with np.errstate(all="ignore"):
            while True:
                running = np.flatnonzero(self.status == RUNNING)
                if running.size:
                    self._run_lowest(running)
                elif not self._release_barriers():
                    break
        if (self.status != EXITED).any():
            places = np.unique(self.pc[self.status != EXITED], return_counts=True)
            where = {int(pc): int(count) for pc, count in zip(*places, strict=True)}
            raise ExecutionError(f"deadlock: threads wait at a barrier that others left: {where}")
        if self.device.stats:
            self.counting.finish()

    def _run_lowest(self, running: np.ndarray) -> None:
        """Run the lanes with the lowest program counter until they branch or meet others."""
        pcs = self.pc[running]
        pc, end = int(pcs.min()), len(self.program)
        group = running[pcs == pc]
        others = pcs[pcs > pc]
        stop = int(others.min()) if others.size else end + 1
        while pc < stop:
            if pc >= end:
                self.status[group] = EXITED
                return
            self.steps_left -= 1
            if self.steps_left < 0:
                raise ExecutionError("too many steps: an endless loop?")
            moved = self._step(pc, group)
            pc += 1
            if moved is not None:  # control flow: each lane has its own next pc now
                return
        self.pc[group] = pc

    def _step(self, pc: int, group: np.ndarray):
        instr, active = self.kernel.code[pc], group
        if instr.guard is not None:
            active = group[self.registers[instr.guard.name][group] != instr.negated]
            if not active.size and instr.opcode[0] != "bra":
                return None
        try:
            moved = self.program[pc](active, group)
        except FAULTS as fault:
            raise type(fault)(
                f"{fault}\n  in {self.kernel.name}, PTX line {instr.line}: {instr.text}"
            ) from None
        if self.device.stats and active.size:
            self.counting.instruction(instr, active)
        return moved

    def branch(self, taken: np.ndarray, group: np.ndarray, target: int, here: int) -> bool:
        self.pc[group] = here + 1
        self.pc[taken] = target
        return True

    def exit(self, active: np.ndarray, group: np.ndarray, here: int) -> bool:
        self.pc[group] = here + 1
        self.status[active] = EXITED
        return True

    def wait(
        self, active: np.ndarray, group: np.ndarray, here: int, barrier: np.ndarray, count
    ) -> bool:
        self.pc[group] = here + 1
        self.status[active] = WAITING
        self.waits_on[active] = barrier
        self.needs[active] = count
        self._release_barriers()
        return True

    def _release_barriers(self) -> bool:
        waiting = self.status == WAITING
        if not waiting.any():
            return False
        key = self.block_of * 16 + self.waits_on
        arrived = np.bincount(key[waiting], minlength=self.blocks * 16)
        alive = np.bincount(self.block_of[self.status != EXITED], minlength=self.blocks)
        need = np.where(self.needs > 0, self.needs, alive[self.block_of])
        free = waiting & (arrived[key] >= need)
        if not free.any():
            return False
        self.status[free] = RUNNING
        if self.races:
            self.races.barrier(np.unique(self.block_of[free]))
        return True

    def locate(
        self, space: str, address: np.ndarray, lanes: np.ndarray
    ) -> tuple[Space, np.ndarray]:
        """The `Space` and offsets behind addresses; generic addresses are decoded by window."""
        address = address.astype(np.int64)
        if space == "generic":
            first = int(address[0])
            if SHARED_WINDOW <= first < SHARED_WINDOW + WINDOW_SIZE:
                space, address = "shared", address - SHARED_WINDOW
            elif LOCAL_WINDOW <= first < LOCAL_WINDOW + WINDOW_SIZE:
                space, address = "local", address - LOCAL_WINDOW
            else:
                space = "global"
        if space in ("global", "const"):
            return self.device.memory, self.device.memory.offsets(address)
        if space == "shared":
            if address.size and (
                int(address.min()) < 0 or int(address.max()) >= self.shared_stride
            ):
                raise MemoryFault(
                    f"shared access outside the block's {self.shared_bytes} bytes (address {int(address.max())})"
                )
            return self.shared, address + self.block_of[lanes] * self.shared_stride
        if space == "local":
            return self.local, address + lanes * self.local_stride
        if space == "param":
            return self.param, address
        raise Unsupported(f"state space {space}")

    def load(self, space: str, address: np.ndarray, lanes: np.ndarray, size: int) -> np.ndarray:
        where, offsets = self.locate(space, address, lanes)
        if self.races and where is self.shared:
            self.races.read(offsets, lanes, size)
        return where.load(offsets, size)

    def store(
        self, space: str, address: np.ndarray, lanes: np.ndarray, values: np.ndarray, size: int
    ) -> None:
        where, offsets = self.locate(space, address, lanes)
        if where is self.shared and self.races:
            self.races.write(offsets, lanes, size)
        where.store(offsets, values, size)
