"""Who else multiplies by a weight on a CPU: every peer is an optional adapter, and one that is absent says why.

    adapter   name, whether it multiplies by the dense or by the pruned weight, precision, ``missing(job)`` -> reason
    job       what to multiply: ``layers`` (equal shapes, each in its own memory), ``x``, the pattern, the threads
    stack     a built contender: ``run()`` goes over all layers once, ``rows()`` is the first layer's result

A new peer is a module of this package with an ``Adapter``, and one entry in ``ADAPTERS``.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.peers import absent, mkl, runtimes, torch_dense, torch_sparse
from bench.peers.adapter import Adapter, Job, Stack

__all__ = ["ADAPTERS", "Adapter", "Job", "Stack", "survey"]

#: every peer by name; the order is that of the tables
ADAPTERS: Mapping[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        torch_sparse.CSR,
        torch_sparse.BSR,
        mkl.CSR,
        mkl.BSR,
        torch_dense.MKL_PACKED,
        runtimes.ONNXRUNTIME,
        runtimes.OPENVINO,
        torch_dense.INT8_DYNAMIC,
        torch_dense.BF16,
        runtimes.DEEPSPARSE,
        absent.LIBXSMM,
        absent.XNNPACK,
    )
}


def survey(threads: int, *, deepsparse: bool = False, without: bool = False) -> dict[str, str]:
    """Peer -> ``present (package version)``, or why it is absent; the record names all, measured or not."""
    if without:
        return dict.fromkeys(ADAPTERS, "left out (--no-peers)")
    found = {name: adapter.presence(threads) for name, adapter in ADAPTERS.items()}
    if not deepsparse:
        found[runtimes.DEEPSPARSE.name] = (
            "off (evaluation licence, end of life; --deepsparse asks for it)"
        )
    return found
