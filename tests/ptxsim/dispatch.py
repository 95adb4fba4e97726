"""From an instruction to the function that runs it.

`compile_instr(instr, run)` returns `step(active, group)`: `active` are the lanes whose guard
holds, `group` all lanes at this instruction. A step returns None, or True when it has set
the program counters itself (branches, barriers, exit).
"""

from __future__ import annotations

from .syntax import Instr
from .values import Unsupported

_HANDLERS = {}


def op(*names):
    def register(function):
        for name in names:
            _HANDLERS[name] = function
        return function

    return register


def compile_instr(instr: Instr, run):
    handler = _HANDLERS.get(instr.opcode[0])
    here = len_so_far(run, instr)
    if handler is None:

        def unsupported(active, group):
            raise Unsupported(".".join(instr.opcode))

        return unsupported
    try:
        return handler(instr, run, here)
    except (Unsupported, KeyError, ValueError) as reason:
        message = f"{'.'.join(instr.opcode)}: {reason!r}"

        def refused(active, group):
            raise Unsupported(message)

        return refused


def len_so_far(run, instr: Instr) -> int:
    if not hasattr(run, "_index_of"):
        run._index_of = {id(each): i for i, each in enumerate(run.kernel.code)}
    return run._index_of[id(instr)]
