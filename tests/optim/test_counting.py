"""Steps that may not count, with ``found_inf`` and ``lr`` on a device: few reads, nothing differs.

There is no device here: tensors that are marked are taken for such, and reading one is recorded.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import evoprune_kernels as ek
from evoprune_kernels.optim import _counting

CLASSES = [
    pytest.param(ek.optim.AdamW, {}, id="adamw"),
    pytest.param(ek.optim.SGD, {"momentum": 0.9}, id="sgd"),
]
SKIPPED = (0, 3, 4, 6)  # of the calls of step(); 6 would choose masks
RATES = (0.05, 0.02, 0.0, 0.0, 0.1, 0.0, 0.05, 0.05, 0.0, 0.02, 0.0, 0.02, 0.02, 0.1)


class Reads(TorchDispatchMode):
    """Counts how often one of ``marked`` becomes a Python number."""

    def __init__(self, marked):
        super().__init__()
        self.pointers = {t.data_ptr() for t in marked}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += args[0].data_ptr() in self.pointers
        return func(*args, **(kwargs or {}))


@pytest.fixture
def far(monkeypatch):
    """Marks tensors as those of a device."""
    marked = {}
    monkeypatch.setattr(_counting, "on_host", lambda t: t.data_ptr() not in marked)
    monkeypatch.setattr("evoprune_kernels.optim._pruning.on_host", _counting.on_host)

    def mark(tensor):
        marked[tensor.data_ptr()] = tensor  # kept, so that no other tensor gets its memory
        return tensor

    return mark


def train(cls, kwargs, config, mark, lr=0.05, groups=1, steps=14, rates=()):
    """The optimizer, its parameters, and for every step the count and how often it read a marked tensor.

    ``rates``: the learning rates of the steps, which go into ``lr`` where that is a tensor.
    """
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(8, 16)) for _ in range(2 * groups)]
    lists = [{"params": params[2 * i : 2 * i + 2]} for i in range(groups)]
    optimizer = cls(lists, lr=lr, prune=config, fused=True, **kwargs)
    generator = torch.Generator().manual_seed(1)
    counts, reads = [], []
    for call in range(steps):
        for p in params:
            p.grad = torch.randn(8, 16, generator=generator)
        for group in optimizer.param_groups if rates else ():
            group["lr"] = lr.fill_(rates[call]) if isinstance(lr, torch.Tensor) else rates[call]
        optimizer.found_inf = mark(torch.tensor(float(call in SKIPPED)))
        optimizer.grad_scale = torch.tensor(2.0)
        learning_rates = [lr] if isinstance(lr, torch.Tensor) else []
        with Reads([optimizer.found_inf, *map(mark, learning_rates)]) as seen:
            optimizer.step()
        reads.append(seen.count)
        counts.append(optimizer.param_groups[0]["prune_step"])
    return optimizer, params, counts, reads


def states(optimizer, params):
    found = [p.detach() for p in params]
    for p in params:
        found += [optimizer.state[p][key] for key in sorted(optimizer.state[p])]
    return found


@pytest.mark.parametrize(("cls", "kwargs"), CLASSES)
@pytest.mark.parametrize("importance", ["evolution", "magnitude", "platon"])
def test_the_same_steps_and_masks_with_few_reads(far, cls, kwargs, importance):
    options = {"window": 3} if importance == "platon" else {}
    config = ek.PruneConfig("2:4", importance=importance, start=4, end=8, every=2, **options)
    near = train(cls, kwargs, config, lambda t: t)
    ours = train(cls, kwargs, config, far, groups=1)
    for a, b in zip(states(*near[:2]), states(*ours[:2]), strict=True):
        assert torch.equal(a, b)
    assert ours[0].state_dict()["param_groups"] == near[0].state_dict()["param_groups"]
    assert near[0].param_groups[0]["prune_step"] == 14 - len(SKIPPED)
    assert near[3] == [1] * 14
    # calls 0 and 1 try the first step, 6 and 7 step 4, 9 makes step 6 and 11 step 8, which choose masks; windows of
    # three steps end at 3 and 6
    expected = {0, 1, 6, 7, 9, 11} | ({3, 4, 5} if importance == "platon" else set())
    assert ours[3] == [call in expected for call in range(14)]


def test_a_group_does_not_read_what_the_other_has_just_sent(far):
    config = ek.PruneConfig("2:4", start=100, every=1)
    taken = []
    original = _counting.Flag.is_zero

    def recorded(flag):
        taken.append(flag)
        return original(flag)

    _counting.Flag.is_zero = recorded
    try:
        optimizer, _, counts, reads = train(ek.optim.AdamW, {}, config, far, groups=2, steps=5)
    finally:
        _counting.Flag.is_zero = original
    assert reads == [2, 2, 0, 0, 0]
    assert len(taken) == 2 * 2  # calls 2 and 3 of both groups; those of call 4 are on their way
    assert counts == [0, 1, 2, 3, 3]
    assert optimizer.state_dict()["param_groups"][1]["prune_step"] == 2


@pytest.mark.parametrize(
    "settled",
    [
        lambda o: o.state_dict()["param_groups"][0]["prune_step"],
        lambda o: copy.deepcopy(o).param_groups[0]["prune_step"],
        lambda o: pickle.loads(pickle.dumps(o)).param_groups[0]["prune_step"],
        lambda o: (o.sparsity_report(), o.param_groups[0]["prune_step"])[1],
        lambda o: (o.refresh_masks_(), o.param_groups[0]["prune_step"])[1],
        lambda o: (o.load_state_dict(o.state_dict()), o.param_groups[0]["prune_step"])[1],
    ],
    ids=["state_dict", "deepcopy", "pickle", "sparsity_report", "refresh_masks_", "load_state_dict"],
)  # fmt: skip
def test_whoever_needs_the_count_gets_the_right_one(far, settled):
    config = ek.PruneConfig("2:4", start=100, every=1)
    optimizer, _, counts, _ = train(ek.optim.AdamW, {}, config, far, steps=5)
    assert counts[-1] == 3  # call 4 was skipped, which nobody has looked at yet
    assert settled(optimizer) == 2


@pytest.mark.parametrize(("cls", "kwargs"), CLASSES)
@pytest.mark.parametrize("importance", ["evolution", "movement", "magnitude", "platon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learning_rate_of_a_device_that_is_zero_at_times(far, cls, kwargs, importance, dtype):
    """As with a number, and read only in first steps and where masks are chosen or a window ends."""
    options = {"window": 3} if importance == "platon" else {}
    config = ek.PruneConfig("2:4", importance=importance, start=4, end=6, every=2, **options)
    rates = torch.tensor(RATES, dtype=dtype).tolist()  # numbers that the tensor holds too
    lr = torch.tensor(1.0, dtype=dtype)
    near = train(cls, kwargs, config, lambda t: t, rates=rates)
    ours = train(cls, kwargs, config, far, lr=lr, rates=rates)
    for a, b in zip(states(*near[:2]), states(*ours[:2]), strict=True):
        assert torch.equal(a, b)
    ours_group, near_group = (run[0].state_dict()["param_groups"][0] for run in (ours, near))
    assert ours_group["prune_step"] == 6
    assert {**ours_group, "lr": 0} == {**near_group, "lr": 0}
    tried = [count + 1 for count in (0, *near[2][:-1])]
    waits = [config.due(t) or config.window_ends(t) or call < 2 for call, t in enumerate(tried)]
    assert [seen > 0 for seen in ours[3]] == waits


def test_a_learning_rate_of_a_device_alone_is_never_read_while_an_average_moves(far):
    lr = far(torch.tensor(0.05))
    param = torch.nn.Parameter(torch.randn(8, 16))
    param.grad = torch.randn(8, 16)
    config = ek.PruneConfig("2:4", importance="evolution", start=100)
    optimizer = ek.optim.AdamW([param], lr=lr, prune=config, fused=True)
    optimizer.step()  # the first step waits
    for rate in (0.0, 0.02):
        before = optimizer.state[param]["importance"].clone()
        lr.fill_(rate)
        with Reads([lr]) as seen:
            optimizer.step()
        assert seen.count == 0
        assert torch.equal(optimizer.state[param]["importance"], before) == (rate == 0)
    assert optimizer.state_dict()["param_groups"][0]["prune_step"] == 2
