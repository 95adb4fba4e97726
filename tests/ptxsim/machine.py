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
from .isa_mma import BadMetadata
from .isa_warp import Divergence
from .launch import Launch, dim3
from .memory import (
    GlobalMemory,
    MemoryFault,
    Pointer,
    Space,
    window_of,
)
from .parse import parse
from .races import BlockRaces, RaceError, Races, WarpRaces
from .stats import Counting, Stats
from .syntax import Module
from .values import Unsupported

#: importing these modules registers their instructions with `dispatch`
INSTRUCTION_SETS = (isa_arith, isa_bits, isa_control, isa_convert, isa_memory, isa_mma)
RUNNING, WAITING, EXITED, GATHERING = 0, 1, 2, 3
PATIENCE = 500  # rounds of one loop before other warps overtake it
FAULTS = (BadMetadata, MemoryFault, Divergence, RaceError, Unsupported)


class ExecutionError(RuntimeError):
    """A fault while running; the message names the PTX line and instruction."""


class Device:
    """A simulated GPU.

    memory: bytes of global memory; racecheck: raise on shared-memory accesses of two warps
    that no barrier orders; global_racecheck: the same for blocks of one launch on global memory
    (see `races.BlockRaces`); same_value_writes: two warps may write one value to a shared byte, as
    Triton does with what all its warps hold; initcheck: raise on reads of bytes that nothing wrote; stats: count
    instructions and memory traffic (slower).
    """

    def __init__(
        self,
        memory: int = 1 << 26,
        racecheck: bool = True,
        initcheck: bool = True,
        stats: bool = True,
        global_racecheck: bool = True,
        same_value_writes: bool = False,
    ):
        self.memory = GlobalMemory(memory, initcheck)
        self.racecheck, self.initcheck, self.stats = racecheck, initcheck, stats
        self.global_racecheck = global_racecheck
        self.same_value_writes = same_value_writes
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
        try:
            run.execute(max_steps)
            return run.counts
        finally:
            run.release()


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
        self.gathering = False
        self.rounds, self.waiting_at = 0, -1
        self.arrived = np.zeros(self.blocks * 16, np.int64)
        self.votes = np.zeros(self.lanes, bool)
        self.reductions: list = []
        self.shared_start = self.block_of * self.shared_stride
        self.warp_races = WarpRaces(self) if device.racecheck else None
        several = device.global_racecheck and self.blocks > 1
        self.block_races = BlockRaces(self) if several else None
        self.program: list = [None] * len(kernel.code)  # compiled when first executed

    def execute(self, max_steps: int) -> None:
        """Run until every lane has exited."""
        self.steps_left = max_steps
        with np.errstate(all="ignore"):
            while True:
                running = self._lanes(self.status == RUNNING)
                if running.size:
                    self._run_lowest(running)
                elif not self._release_barriers():
                    break
        self._refuse_gathered()
        if (self.status != EXITED).any():
            places = np.unique(self.pc[self.status != EXITED], return_counts=True)
            where = {int(pc): int(count) for pc, count in zip(*places, strict=True)}
            raise ExecutionError(f"deadlock: threads wait at a barrier that others left: {where}")
        if self.device.stats:
            self.counting.finish()

    def release(self) -> None:
        """Drop the arrays now: the compiled steps refer to the run, and a cycle would keep them."""
        vars(self).clear()

    def _lanes(self, mask: np.ndarray) -> np.ndarray:
        return self.every if mask.all() else np.flatnonzero(mask)

    def _run_lowest(self, running: np.ndarray) -> None:
        """Run the lanes with the lowest program counter until they branch or meet others."""
        pcs = self.pick(self.pc, running)
        pc, end = int(pcs.min()), len(self.program)
        here = pcs == pc
        group, stop = running, end + 1
        if not here.all():
            group, stop = running[here], int(pcs[~here].min())
            if self._spins(stop):
                others = running[~np.isin(self.warp_of[running], self.warp_of[group])]
                if others.size:
                    self._run_lowest(others)
                    return
        if self.gathering:
            group, stop = self._join(pc, group, stop)
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

    def _spins(self, waiting_at: int) -> bool:
        """Whether the lowest lanes loop so long that they may wait for those at `waiting_at`."""
        self.rounds = self.rounds + 1 if waiting_at == self.waiting_at else 0
        self.waiting_at = waiting_at
        return self.rounds > 0 and self.rounds % PATIENCE == 0

    def gather(self, lanes: np.ndarray, group: np.ndarray, here: int) -> bool:
        """Hold lanes at a warp instruction until the rest of their warp comes there too."""
        self.pc[group] = here + 1
        self.pc[lanes] = here
        self.status[lanes] = GATHERING
        self.gathering = True
        return True

    def _join(self, pc: int, group: np.ndarray, stop: int) -> tuple[np.ndarray, int]:
        """Lanes held at `pc` run with those that arrive; the run ends where others are held."""
        held = np.flatnonzero(self.status == GATHERING)
        at = self.pc[held]
        joined, later = held[at == pc], at[at > pc]
        self.status[joined] = RUNNING
        self.gathering = joined.size < held.size
        if joined.size:
            group = np.sort(np.concatenate((group, joined)))
        return group, min(stop, int(later.min())) if later.size else stop

    def _refuse_gathered(self) -> None:
        held = np.flatnonzero(self.status == GATHERING)
        if held.size:
            instr = self.kernel.code[int(self.pc[held[0]])]
            warp = int(self.warp_of[held[0]])
            raise Divergence(
                f"{int((self.warp_of[held] == warp).sum())} threads of warp {warp} wait for the rest"
                f"\n  in {self.kernel.name}, PTX line {instr.line}: {instr.text}"
            )

    def alive(self) -> np.ndarray:
        return self.status != EXITED

    def _step(self, pc: int, group: np.ndarray):
        instr, active = self.kernel.code[pc], group
        if instr.guard is not None:
            taken = self.pick(self.registers[instr.guard.name], group) != instr.negated
            if not taken.all():
                active = group[taken]
            if not active.size and instr.opcode[0] != "bra":
                return None
        try:
            step = self.program[pc]
            if step is None:
                step = self.program[pc] = compile_instr(instr, self)
            moved = step(active, group)
        except FAULTS as fault:
            raise type(fault)(
                f"{fault}\n  in {self.kernel.name}, PTX line {instr.line}: {instr.text}"
            ) from None
        if self.gathering:
            active = active[self.status[active] != GATHERING]
        if active.size:
            self.counting.warps_at[pc] += self.counting.warps(active)
        return moved

    def branch(self, taken: np.ndarray, group: np.ndarray, target: int, here: int) -> bool:
        if group is not taken:
            self.pc[group] = here + 1
        self.pc[taken] = target
        return True

    def exit(self, active: np.ndarray, group: np.ndarray, here: int) -> bool:
        self.pc[group] = here + 1
        self.status[active] = EXITED
        return True

    def wait(self, active, group, here: int, barrier: np.ndarray, count) -> bool:
        """Block lanes at a barrier, until `count` lanes (0: all of the block) are there."""
        self.pc[group] = here + 1
        self.status[active] = WAITING
        self.waits_on[active] = barrier
        self.needs[active] = count
        self._release_barriers()
        return True

    def arrive(self, active, barrier: np.ndarray) -> None:
        """Count lanes as arrived without blocking them; whoever waits must give the same count."""
        np.add.at(self.arrived, self.block_of[active] * 16 + barrier, 1)
        self._release_barriers()

    def _release_barriers(self) -> bool:
        waiting = self.status == WAITING
        if not waiting.any():
            return False
        key = self.block_of * 16 + self.waits_on
        arrived = np.bincount(key[waiting], minlength=self.blocks * 16) + self.arrived
        alive = np.bincount(self.block_of[self.status != EXITED], minlength=self.blocks)
        need = np.where(self.needs > 0, self.needs, alive[self.block_of])
        free = waiting & (arrived[key] >= need)
        if not free.any():
            return False
        self.status[free] = RUNNING
        self.arrived[key[free]] = 0
        self._reduce(free, key)
        if self.warp_races:
            self.warp_races.barrier(np.unique(self.block_of[free]))
        return True

    def _reduce(self, free: np.ndarray, key: np.ndarray) -> None:
        """bar.red: give every lane that leaves a barrier the votes of all that met there."""
        waiting, self.reductions = self.reductions, []
        if waiting:
            ones = np.bincount(key[free], self.votes[free], minlength=self.blocks * 16)
            every = np.bincount(key[free], minlength=self.blocks * 16)
        for lanes, finish in waiting:
            now = free[lanes]
            if now.any():
                leaving = key[lanes[now]]
                finish(lanes[now], ones[leaving].astype(np.int64), every[leaving])
            if not now.all():
                self.reductions.append((lanes[~now], finish))

    def locate(
        self, space: str, address: np.ndarray, lanes: np.ndarray
    ) -> tuple[Space, np.ndarray]:
        """The `Space` and offsets behind addresses; generic addresses are decoded by window."""
        if space == "generic":
            space, start = window_of(int(address[0]))
            address = address - start
        if space in ("global", "const"):
            return self.device.memory, self.device.memory.offsets(address)
        if space == "shared":
            if address.size and (
                int(address.min()) < 0 or int(address.max()) >= self.shared_stride
            ):
                raise MemoryFault(
                    f"shared access outside the block's {self.shared_bytes} bytes"
                    f" (address {int(address.min())}..{int(address.max())})"
                )
            return self.shared, address + self.pick(self.shared_start, lanes)
        if space == "local":
            return self.local, address + lanes * self.local_stride
        if space == "param":
            return self.param, address
        raise Unsupported(f"state space {space}")

    def races_of(self, where: Space) -> Races | None:
        return {id(self.shared): self.warp_races, id(self.device.memory): self.block_races}.get(
            id(where)
        )

    def load(
        self, space: str, address: np.ndarray, lanes: np.ndarray, size: int, strong: bool = False
    ) -> np.ndarray:
        """`strong`: an acquire, release or relaxed access, which orders as an atomic does."""
        where, offsets = self.locate(space, address, lanes)
        found = where.load(offsets, size)
        races = self.races_of(where)
        if strong:
            self.order_atomic(where, offsets, lanes, size)
        elif races and lanes.size:
            races.read(offsets, lanes, size)
        return found

    def store(self, space: str, address, lanes, values, size: int, strong: bool = False) -> None:
        where, offsets = self.locate(space, address, lanes)
        races = self.races_of(where)
        repeats = races is self.warp_races and self.device.same_value_writes
        news = where.differs(offsets, values, size) if repeats else slice(None)
        where.store(offsets, values, size)
        if strong:
            self.order_atomic(where, offsets, lanes, size)
        elif races and lanes.size:
            lost = where.differs(offsets, values, size) if repeats else slice(None)
            races.write(offsets, lanes, size, news, lost)

    def order_atomic(self, where: Space, offsets, lanes, size: int) -> None:
        """An atomic access: it races with plain ones only, and on global memory orders its block."""
        races = self.races_of(where)
        if races and lanes.size:
            races.order(lanes)
            races.atomic(offsets, lanes, size)
