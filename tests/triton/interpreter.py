"""The process that ``runner.Interpreter`` talks to: launchers under ``TRITON_INTERPRET=1``, until its input ends."""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from evoprune_kernels.ops import _triton
from tests.triton.runner import receive, send


def correct_bfloat16() -> None:
    """The interpreter keeps bfloat16 as uint16: it casts towards zero, and denormals wrong; dot multiplies integers."""
    create_dot, cast_impl = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot_of_numbers(self, a, b, *rest):
        return create_dot(self, widened(a), widened(b), *rest)

    def cast_to_nearest(self, source, kind):
        if kind.scalar == tl.float32:
            source = widened(source)
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.int16)
            return TensorHandle(rounded.numpy().view(np.uint16), kind.scalar)
        return cast_impl(self, source, kind)

    InterpreterBuilder.create_dot = create_dot_of_numbers
    InterpreterBuilder.cast_impl = cast_to_nearest


def correct_loop_bounds() -> None:
    """A loaded scalar is an array [1]: NumPy 2.4 refuses it as a bound of ``range``, where Triton (3.6) calls int."""
    patch = interpreter._patch_lang_tensor

    def patch_and_index(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_index


def serve() -> None:
    """Answer ``(op, args, kwargs)`` with ``(result, error, the arguments as they are now)``."""
    correct_bfloat16()
    correct_loop_bounds()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what kernels print
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN in what no kernel writes
    while True:
        try:
            op, args, kwargs = receive(sys.stdin.buffer)
        except EOFError:
            return
        launcher, unfit = _triton.implementation(op)
        result = error = None
        try:
            assert (why := unfit(*args, **kwargs)) is None, why
            result = launcher(*args, **kwargs)
        except Exception as caught:
            plain = isinstance(caught, ValueError | TypeError | AssertionError)
            error = caught if plain else RuntimeError(repr(caught.__cause__ or caught))
        send(out, (result, error, (args, kwargs)))


if __name__ == "__main__":
    serve()
