"""torch's own optimizer configurations (its private ``optim_db`` harness) run against ours.

The harness lists what torch tests its optimizers with: hyperparameters, flags, schedulers and expected errors. It ships
in the wheel but is private, so a torch without it skips this file by name.
"""

from __future__ import annotations

import copy
import itertools
import unittest

import pytest
import torch

import evoprune_kernels as ek

try:
    from torch.testing._internal import common_optimizers as upstream
    from torch.testing._internal.common_device_type import instantiate_device_type_tests
    from torch.testing._internal.common_utils import TestCase
except ImportError as error:  # pragma: no cover
    pytest.skip(f"torch's private test harness is not there: {error}", allow_module_level=True)

THEIRS = {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}
DB = {info.optim_cls.__name__: info for info in upstream.optim_db}


def ours(name):
    """torch's record of an optimizer, with our class in it."""
    info = copy.copy(DB[name])
    info.optim_cls = getattr(ek.optim, name)
    return info


INFOS = [ours("AdamW"), ours("SGD")]
assert all(info.optim_cls.__name__ == name for info, name in zip(INFOS, THEIRS, strict=True))


def configurations(info, device="cpu", dtype=torch.float32, skip=()):
    found = upstream._get_optim_inputs_including_global_cliquey_kwargs(
        device, dtype, info, skip=skip
    )
    assert len(found) >= 5, "the harness gave hardly any configurations"
    return found


def pairs(params_of, info, kwargs):
    """The same parameters under ours and under torch's."""
    for optimizer_class in (info.optim_cls, THEIRS[info.optim_cls.__name__]):
        params = params_of()
        yield params, optimizer_class(params, **copy.deepcopy(kwargs))


def small_problem(contiguous=True):
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(10, 5, generator=generator), torch.randn(10, generator=generator)
    x = torch.randn(5, generator=generator)
    if not contiguous:
        weight, bias = weight.t().contiguous().t(), torch.stack([bias, bias], -1)[..., 0]
    return weight, bias, x


class Upstream(TestCase):
    """Every test runs over AdamW and SGD, and inside over all of torch's configurations."""

    @upstream.optims(INFOS)
    def test_errors(self, device, dtype, optim_info):
        for case in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = case.optimizer_error_input
            if issubclass(case.error_type, Warning):
                with self.assertWarnsRegex(case.error_type, case.error_regex):
                    optim_info.optim_cls(given.params, **given.kwargs)
            elif case.error_on is upstream.OptimizerErrorEnum.CONSTRUCTION_ERROR:
                with self.assertRaisesRegex(case.error_type, case.error_regex):
                    optim_info.optim_cls(given.params, **given.kwargs)
            else:
                optimizer = optim_info.optim_cls(given.params, **given.kwargs)
                with self.assertRaisesRegex(case.error_type, case.error_regex):
                    optimizer.step()

    @upstream.optims(INFOS)
    def test_loss_goes_down_with_and_without_schedulers(self, device, dtype, optim_info):
        for config, schedulers, contiguous in itertools.product(
            configurations(optim_info, skip=("differentiable",)),
            [(), *optim_info.scheduler_inputs[:3]],
            [True, False],
        ):
            weight, bias, x = small_problem(contiguous)
            weight, bias = weight.requires_grad_(), bias.detach().requires_grad_()
            kwargs = copy.deepcopy(config.kwargs)
            optimizer = optim_info.optim_cls([weight, bias], **kwargs)
            made = [make(optimizer) for make in schedulers]
            losses = []
            for _ in range(8):
                optimizer.zero_grad()
                loss = (weight.mv(x) + bias).pow(2).sum()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                for scheduler in made:
                    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    scheduler.step(loss) if plateau else scheduler.step()
            message = f"{config} contiguous={contiguous}"
            if kwargs.get("maximize"):
                self.assertGreater(losses[-1], losses[0], message)
            else:
                self.assertLess(losses[-1], losses[0], message)

    @upstream.optims(INFOS)
    def test_same_bits_as_torch(self, device, dtype, optim_info):
        sizes = [(), (3,), (10, 5), (129,), (4, 4, 4)]
        for config in configurations(optim_info, skip=("differentiable",)):

            def params_of():
                generator = torch.Generator().manual_seed(0)
                return [torch.randn(s, generator=generator).requires_grad_() for s in sizes]

            (mine, a), (torchs, b) = pairs(params_of, optim_info, config.kwargs)
            for step in range(7):
                for i, (p, q) in enumerate(zip(mine, torchs, strict=True)):
                    frozen = step == 2 or (i == 1 and step > 2)
                    p.grad = None if frozen else torch.randn(p.shape)
                    q.grad = None if frozen else p.grad.clone()
                a.step()
                b.step()
            for p, q in zip(mine, torchs, strict=True):
                self.assertTrue(torch.equal(p, q), str(config))
                for key, value in b.state[q].items():
                    self.assertTrue(torch.equal(a.state[p][key], value), f"{config} {key}")

    @upstream.optims(INFOS)
    def test_pruned_groups_take_every_configuration(self, device, dtype, optim_info):
        """The same step as torch's loop until pruning starts, exactly 2:4 after it."""
        for config in configurations(optim_info, skip=("differentiable",)):
            kwargs = copy.deepcopy(config.kwargs)
            prune = ek.PruneConfig("2:4", start=5, end=7, every=1)
            w = torch.randn(8, 16).requires_grad_()
            expected = w.detach().clone().requires_grad_()
            optimizer = optim_info.optim_cls([w], prune=prune, **kwargs)
            kwargs.update(foreach=False, fused=False)
            truth = THEIRS[optim_info.optim_cls.__name__]([expected], **kwargs)
            for step in range(9):
                w.grad = torch.randn(8, 16)
                expected.grad = w.grad.clone()
                optimizer.step()
                truth.step()
                if step < 4:
                    self.assertEqual(w, expected, msg=str(config), atol=1e-6, rtol=1e-5)
            self.assertEqual(int((w == 0).sum()), 64, msg=str(config))

    @upstream.optims(INFOS)
    def test_zero_gradients_change_nothing_without_decay(self, device, dtype, optim_info):
        for config in configurations(optim_info, skip=("differentiable",)):
            kwargs = {**copy.deepcopy(config.kwargs), "weight_decay": 0}
            w = torch.randn(5, 1).requires_grad_()
            before = w.detach().clone()
            optimizer = optim_info.optim_cls([w], **kwargs)
            for _ in range(3):
                w.grad = torch.zeros_like(w)
                optimizer.step()
            self.assertEqual(w, before, msg=str(config))

    @upstream.optims(INFOS)
    def test_state_dict_is_deterministic_and_restores(self, device, dtype, optim_info):
        found = configurations(optim_info, skip=("differentiable",))
        for config, named in itertools.product(found, [False, True]):
            weight, bias, x = small_problem()
            weight, bias = weight.requires_grad_(), bias.requires_grad_()
            params = [("w", weight), ("b", bias)] if named else [weight, bias]
            optimizer = optim_info.optim_cls(params, **copy.deepcopy(config.kwargs))

            def steps(optimizer, weight, bias, count, x=x):
                for _ in range(count):
                    optimizer.zero_grad()
                    (weight.mv(x) + bias).pow(2).sum().backward()
                    optimizer.step()

            steps(optimizer, weight, bias, 4)
            twins = [p.detach().clone().requires_grad_() for p in (weight, bias)]
            resumed = optim_info.optim_cls(
                list(zip("wb", twins, strict=True)) if named else twins,
                **copy.deepcopy(config.kwargs),
            )
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            steps(optimizer, weight, bias, 4)
            steps(resumed, *twins, 4)
            self.assertEqual([weight, bias], twins, atol=0, rtol=0, msg=str(config))
            self.assertEqual(
                optimizer.state_dict(), resumed.state_dict(), atol=0, rtol=0, msg=str(config)
            )
            self.assertIn("Parameter Group 0", repr(resumed))

    @upstream.optims(INFOS)
    def test_complex_parameters(self, device, dtype, optim_info):
        for config in configurations(optim_info, skip=("differentiable", "fused")):

            def params_of():
                generator = torch.Generator().manual_seed(0)
                return [
                    torch.randn(5, 3, dtype=torch.complex64, generator=generator).requires_grad_()
                ]

            results = []
            for params, optimizer in pairs(params_of, optim_info, config.kwargs):
                for i in range(4):
                    params[0].grad = params[0].detach() * (1 + 1j * i)
                    optimizer.step()
                results.append(params[0].detach())
            self.assertEqual(*results, atol=0, rtol=0, msg=str(config))

    @upstream.optims(INFOS)
    def test_per_group_hyperparameters(self, device, dtype, optim_info):
        for lr, decay in [(0.01, 0.1), (0.5, 0.0)]:

            def params_of():
                return [
                    torch.full((4,), 2.0, requires_grad=True),
                    torch.full((3,), 1.0, requires_grad=True),
                ]

            results = []
            for optimizer_class in (optim_info.optim_cls, THEIRS[optim_info.optim_cls.__name__]):
                a, b = params_of()
                optimizer = optimizer_class(
                    [{"params": [a]}, {"params": [b], "lr": lr, "weight_decay": decay}], lr=0.1
                )
                for _ in range(3):
                    a.grad, b.grad = torch.ones(4), torch.ones(3)
                    optimizer.step()
                results.append([a.detach(), b.detach()])
            self.assertEqual(*results, atol=0, rtol=0)


instantiate_device_type_tests(Upstream, globals(), only_for=("cpu",))

if __name__ == "__main__":
    unittest.main()
