"""FSDP2 on the CPU: sharded parameters give the masks and weights of the unsharded run, on one rank and on two."""

from __future__ import annotations

import os
import socket
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import evoprune_kernels as ek

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch was built without gloo", allow_module_level=True)

from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

CONFIGS = {
    "plain": None,
    "2:4": ek.PruneConfig("2:4", start=2, end=6, every=2),
    "block": ek.PruneConfig("block:4x4", 0.5, importance="taylor", start=2, end=6, every=2),
    "global": ek.PruneConfig("unstructured", 0.6, start=2, end=6, every=2, scope="global"),
}
OPTIMIZERS = {
    "adamw": (ek.optim.AdamW, {"lr": 0.05}),
    "adamw-fused": (ek.optim.AdamW, {"lr": 0.05, "fused": True}),
    "sgd": (ek.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "sgd-fused": (ek.optim.SGD, {"lr": 0.05, "momentum": 0.9, "fused": True}),
}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def train(config, optimizer, mesh=None, steps=8):
    """The model after some steps; every rank sees the same batch, so the gradient is that of one rank."""
    torch.manual_seed(0)
    # 9 rows do not divide by two: the shards are uneven; 1 row leaves a rank with nothing
    model = torch.nn.Sequential(torch.nn.Linear(16, 9), torch.nn.ReLU(), torch.nn.Linear(9, 1))
    x = torch.randn(32, 16)
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    optimizer_class, kwargs = OPTIMIZERS[optimizer]
    opt = optimizer_class(model.parameters(), prune=CONFIGS[config], **kwargs)
    for _ in range(steps):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
    return model, opt


COMBINATIONS = [
    *(("plain", optimizer) for optimizer in OPTIMIZERS),
    ("2:4", "adamw"),
    ("2:4", "sgd-fused"),
    ("block", "sgd"),
    ("global", "adamw-fused"),
]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(mesh):
    # one rank shards nothing: a few combinations show that DTensors are taken
    chosen = COMBINATIONS if mesh.size() > 1 else COMBINATIONS[-2:]
    for config, optimizer in chosen:
        sharded, opt = train(config, optimizer, mesh)
        expected, plain = train(config, optimizer)
        assert opt.sparsity_report() == plain.sparsity_report(), (config, optimizer)
        for p, q in zip(sharded.parameters(), expected.parameters(), strict=True):
            assert isinstance(p, DTensor)
            torch.testing.assert_close(p.full_tensor(), q.detach(), atol=1e-5, rtol=1e-4)
            for key, value in plain.state[q].items():
                mine = whole(opt.state[p][key])
                assert mine.dtype == value.dtype
                if key == "mask":
                    assert torch.equal(mine, value), (config, optimizer)
                else:
                    torch.testing.assert_close(mine, value, atol=1e-5, rtol=1e-4)


def sharded_by_columns(mesh):
    """A shard that cuts groups of four apart: the pattern is that of the whole weight."""
    torch.manual_seed(0)
    weight, grad = torch.randn(6, 18), torch.randn(6, 18)
    p = torch.nn.Parameter(distribute_tensor(weight, mesh, [Shard(1)]))
    q = torch.nn.Parameter(weight.clone())
    for param in (p, q):
        opt = ek.optim.SGD([param], lr=0.1, prune=ek.PruneConfig("2:4", start=1))
        sharded = isinstance(param, DTensor)
        # a gradient that is laid out otherwise than its parameter
        param.grad = distribute_tensor(grad, mesh, [Shard(0)]) if sharded else grad
        opt.step()
    torch.testing.assert_close(p.full_tensor(), q.detach())
    assert int((q == 0).sum()) == 6 * 8


def phantom_step(mesh):
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 8)
    fully_shard(model, mesh=mesh)
    opt = ek.optim.AdamW(model.parameters(), prune=CONFIGS["2:4"])
    state = get_optimizer_state_dict(model, opt)["state"]["weight"]
    assert isinstance(state["mask"], DTensor) and state["mask"].dtype == torch.bool
    assert state["mask"].full_tensor().all() and not state["importance"].full_tensor().any()
    assert opt.param_groups[0]["prune_step"] == 0


def on_rank(rank: int, ranks: int, port: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        compare(mesh)
        sharded_by_columns(mesh)
        phantom_step(mesh)
        dist.barrier()  # no rank leaves while another still talks to it
    finally:
        dist.destroy_process_group()
    # All is checked. Leave without the static destructors of torch, where a thread that still runs ends the process
    # with SIGABRT ("terminate called without an active exception", seen once in some hundred runs).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fully_shard(ranks):
    mp.spawn(on_rank, args=(ranks, free_port()), nprocs=ranks)
