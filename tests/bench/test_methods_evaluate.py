"""Accuracy under noise and attacks, against closed forms of linear networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bench.methods import data, evaluate
from evoprune_kernels import measure

UNBOUNDED = (-math.inf, math.inf)


def linear(weight, bias=(0.0, 0.0)):
    """Two classes of logits ``weight`` @ x + ``bias``."""
    model = nn.Linear(len(weight[0]), 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))
        model.bias.copy_(torch.tensor(bias))
    return model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More are slower for networks this small."""
    with measure.threads(1):
        yield


@pytest.fixture(scope="module")
def trained():
    """A small network on digits, and the test images."""
    task = data.load("digits")
    model = task.make_model(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for epoch in range(8):
        batches = task.batches(0)
        batches.set_epoch(epoch)
        for images, labels in batches:
            optimizer.zero_grad()
            evaluate.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model, task.test.images, task.test.labels


# ---- clean ----
def test_accuracy_and_loss_by_hand():
    model = linear([[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]])
    y = torch.tensor([0, 0, 0])
    assert evaluate.accuracy(model, x, y) == 2 / 3  # of equal logits the first
    by_hand = (math.log1p(math.exp(-1)) + math.log1p(math.exp(3)) + math.log(2)) / 3
    assert evaluate.loss(model, x, y) == pytest.approx(by_hand, rel=1e-6)


def test_the_last_part_of_the_images_counts_as_its_size(monkeypatch):
    model = linear([[1.0], [-1.0]])
    x, y = torch.linspace(-1, 2, 11)[:, None], torch.zeros(11, dtype=torch.int64)
    whole = evaluate.accuracy(model, x, y), evaluate.loss(model, x, y)
    assert whole[0] == 7 / 11
    monkeypatch.setattr(evaluate, "CHUNK", 4)
    assert evaluate.accuracy(model, x, y) == whole[0]
    assert evaluate.loss(model, x, y) == pytest.approx(whole[1], rel=1e-6)


def test_text_has_a_label_per_place():
    logits = torch.zeros(2, 3, 4)
    logits[..., 1] = 5.0
    labels = torch.tensor([[1, 1, 0], [1, 2, 3]])
    assert evaluate.accuracy(nn.Identity(), logits, labels) == 3 / 6
    right, wrong = math.log(1 + 3 * math.exp(-5)), math.log(math.exp(5) + 3)
    expected = (3 * right + 3 * wrong) / 6
    assert evaluate.loss(nn.Identity(), logits, labels) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"labels of shape \(2, 3\), got \(2, 2\)"):
        evaluate.loss(nn.Identity(), logits, labels[:, :2])


def test_wrong_arguments():
    model, x, y = linear([[1.0], [-1.0]]), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one image, got 0"):
        evaluate.accuracy(model, x[:0], y[:0])
    with pytest.raises(ValueError, match="as many labels as images, got 2 and 3"):
        evaluate.accuracy(model, x, y[:2])
    with pytest.raises(ValueError, match="eps of at least 0, got -1"):
        evaluate.fgsm(model, x, y, -1)
    with pytest.raises(ValueError, match="eps of at least 0, got -1"):
        evaluate.pgd(model, x, y, -1)
    with pytest.raises(ValueError, match="steps of at least 1, got 0"):
        evaluate.pgd(model, x, y, 0.1, steps=0)
    with pytest.raises(ValueError, match=r"sigmas of at least 0, got -0\.5"):
        evaluate.gaussian_noise(model, x, y, [-0.5], seed=0)


# ---- what is left behind ----
@pytest.mark.parametrize(
    "call",
    [
        evaluate.accuracy,
        evaluate.loss,
        lambda *a: evaluate.gaussian_noise(*a, [0.1], seed=0),
        lambda *a: evaluate.fgsm(*a, 0.1),
        lambda *a: evaluate.pgd(*a, 0.1, steps=2),
    ],
)
def test_modes_gradients_statistics_and_generator_stay(call):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.train()
    model[1].eval()  # frozen by the user
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    x, y = (
        torch.rand(5, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 0, 1, 1]),
    )
    kept = x.clone()
    first, again = call(model, x, y), call(model, x, y)
    assert torch.equal(torch.as_tensor(first), torch.as_tensor(again))  # without dropout
    assert [m.training for m in model] == [True, False, True, True] and model.training
    assert (model[0].weight.grad == 7.0).all() and model[3].weight.grad is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, kept) and not x.requires_grad


def test_modes_come_back_after_an_error():
    model = nn.Linear(3, 2).train()
    with pytest.raises(RuntimeError):
        evaluate.accuracy(model, torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
    assert model.training


# ---- noise ----
def test_noise_against_the_error_function():
    """One pixel at distance d from the boundary: accuracy Phi(d / sigma)."""
    model = linear([[1.0], [-1.0]])  # class 0 where x > 0
    x, y = torch.full((40_000, 1), 0.3), torch.zeros(40_000, dtype=torch.int64)
    sigmas = [0.0, 0.1, 0.3, 1.0]
    curve = evaluate.gaussian_noise(model, x, y, sigmas, seed=1, bounds=UNBOUNDED)
    assert curve[0] == 1.0
    for sigma, found in zip(sigmas[1:], curve[1:], strict=True):
        exact = 0.5 * (1 + math.erf(0.3 / sigma / math.sqrt(2)))
        assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 40_000))


def test_noise_is_one_draw_scaled_and_clamped():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x

    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(6, dtype=torch.int64)
    evaluate.gaussian_noise(Spy(), x, y, [0.5, 1.0], seed=3, bounds=UNBOUNDED)
    torch.testing.assert_close((seen[1] - x), 2 * (seen[0] - x))
    evaluate.gaussian_noise(Spy(), x, y, [0.5], seed=3)
    assert torch.equal(seen[2], seen[0].clamp(0.0, 1.0)) and not torch.equal(seen[2], seen[0])
    evaluate.gaussian_noise(Spy(), x, y, [0.5], seed=4)
    assert not torch.equal(seen[3], seen[2])


# ---- attacks on a linear network: exact ----
WEIGHT = [[0.5, -1.0, 0.0], [-1.5, 1.0, 0.0]]  # w0 - w1 = (2, -2, 0)
MARGIN_PER_EPS = 4.0  # sum |w0 - w1|


@pytest.mark.parametrize("attack", [evaluate.fgsm, evaluate.pgd])
def test_a_linear_network_falls_exactly_where_eps_passes_its_margin(attack):
    """Logistic regression: the worst images in the ball are x -+ eps * sign(w0 - w1)."""
    model = linear(WEIGHT)
    x = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    margin = x @ torch.tensor([2.0, -2.0, 0.0])
    y = (margin < 0).long()
    eps = [0.0, 0.02, 0.1, 0.25]
    curve = evaluate.attack_curve(attack, model, x, y, eps, bounds=UNBOUNDED)
    exact = [(margin.abs() > MARGIN_PER_EPS * e).double().mean().item() for e in eps]
    assert curve == exact and exact[0] == 1.0 > exact[1] > exact[2] > exact[3] > 0.0


def test_fgsm_images_by_hand():
    x = torch.tensor([[0.5, 0.5, 0.5], [0.95, 0.05, 0.3]])
    attacked = evaluate.fgsm(linear(WEIGHT), x, torch.tensor([0, 1]), 0.1)
    # away from class 0: against (2, -2, 0); away from class 1: along it, stopped at the bounds; no influence: as it was
    expected = torch.tensor([[0.4, 0.6, 0.5], [1.0, 0.0, 0.3]])
    torch.testing.assert_close(attacked, expected, atol=1e-7, rtol=0)


def test_an_image_is_attacked_alike_alone_and_among_others():
    x = torch.rand(7, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    whole = evaluate.fgsm(linear(WEIGHT), x, y, 0.1)
    alone = [evaluate.fgsm(linear(WEIGHT), x[i : i + 1], y[i : i + 1], 0.1) for i in range(7)]
    assert torch.equal(whole, torch.cat(alone))


# ---- PGD ----
def test_pgd_reaches_the_corner_of_the_ball_on_a_linear_network():
    x = torch.full((4, 3), 0.5)
    attacked = evaluate.pgd(linear(WEIGHT), x, torch.tensor([0, 0, 1, 1]), 0.1, seed=2)
    torch.testing.assert_close(attacked[:, 0], torch.tensor([0.4, 0.4, 0.6, 0.6]))
    torch.testing.assert_close(attacked[:, 1], torch.tensor([0.6, 0.6, 0.4, 0.4]))
    start = 0.5 + 0.1 * (2 * torch.rand(4, 3, generator=torch.Generator().manual_seed(2)) - 1)
    torch.testing.assert_close(attacked[:, 2], start[:, 2])  # no influence: the random start


def test_pgd_takes_steps_of_the_size_that_is_asked():
    x, y = torch.full((1, 3), 0.5), torch.tensor([0])
    start = 0.5 + 0.3 * (2 * torch.rand(1, 3, generator=torch.Generator().manual_seed(2)) - 1)
    attacked = evaluate.pgd(linear(WEIGHT), x, y, 0.3, steps=2, step_size=0.01, seed=2)
    expected = (start + torch.tensor([-0.02, 0.02, 0.0])).clamp(0.2, 0.8)
    torch.testing.assert_close(attacked, expected)


@pytest.mark.parametrize("eps", [2 / 255, 0.1, 0.6])
def test_pgd_stays_in_the_ball_and_the_bounds(trained, eps):
    model, x, y = trained
    attacked = evaluate.pgd(model, x, y, eps, steps=4)
    assert attacked.min() >= 0.0 and attacked.max() <= 1.0
    largest = (attacked - x).abs().max().item()
    assert 0.9 * eps < largest <= eps * (1 + 1e-6)
    assert not torch.equal(attacked, evaluate.pgd(model, x, y, eps, steps=4, seed=1))


def test_no_eps_is_clean(trained):
    model, x, y = trained
    for attack in (evaluate.fgsm, evaluate.pgd):
        assert torch.equal(attack(model, x, y, 0.0), x)


def test_stronger_attacks_leave_less(trained):
    model, x, y = trained
    eps = [0.02, 0.05, 0.1]
    once = evaluate.attack_curve(evaluate.fgsm, model, x, y, eps)
    more = evaluate.attack_curve(evaluate.pgd, model, x, y, eps, steps=20)
    clean = evaluate.accuracy(model, x, y)
    assert clean > 0.9 and clean >= once[0] > once[1] > once[2]
    assert all(strong <= weak for strong, weak in zip(more, once, strict=True))
    assert more[2] < once[2]
