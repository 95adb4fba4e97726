"""What a network is worth: accuracy and loss on clean images, under Gaussian noise, and under FGSM and PGD attacks.

Every function puts the model into evaluation mode, and leaves its modes, its gradients and the global generator as they
were. Images are float32 in ``bounds``; noisy and attacked images are clamped to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels._check import check, check_shape
from evoprune_kernels.selection.calibration import evaluating

#: images at a time
CHUNK = 250
#: the range of the images
BOUNDS = (0.0, 1.0)
Bounds = tuple[float, float]


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """-log softmax(logits)[label] of logits [B, C] or [B, T, C] and labels [B] or [B, T]."""
    check_shape(labels, tuple(logits.shape[:-1]), "labels")
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of labels that are the largest logit (of equal ones the first)."""
    check(len(images) > 0, "expected at least one image, got 0")
    right = 0
    with evaluating(model):
        for x, y in _chunks(images, labels):
            right += int((model(x).argmax(-1) == y).sum())
    return right / labels.numel()


@torch.no_grad()
def loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats per label."""
    check(len(images) > 0, "expected at least one image, got 0")
    total = 0.0
    with evaluating(model):
        for x, y in _chunks(images, labels):
            total += cross_entropy(model(x), y, "sum").item()
    return total / labels.numel()


def gaussian_noise(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    sigmas: Sequence[float],
    seed: int,
    bounds: Bounds = BOUNDS,
) -> list[float]:
    """Accuracy at each of ``sigmas`` on clamp(images + sigma * noise, bounds), noise ~ N(0, 1).

    Args:
        model: images [B, ...] -> logits [B, C].
        images: float32 [N, ...] in ``bounds``.
        labels: int64 [N].
        sigmas: standard deviations in the images' units, each at least 0.
        seed: of the noise.
        bounds: lowest and highest value of a pixel.

    Notes:
        One draw of noise, scaled by each sigma: the points of a curve, and the curves of two models with one seed,
        differ by sigma and by model only.

    Source: methods of the "evolution of weights" experiments (30 sigmas in 0-1).
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    curve = []
    for sigma in sigmas:
        check(sigma >= 0, f"expected sigmas of at least 0, got {sigma}")
        noisy = noise.mul(sigma).add_(images).clamp_(*bounds)
        curve.append(accuracy(model, noisy, labels))
    return curve


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, bounds: Bounds = BOUNDS
) -> Tensor:
    """clamp(images + eps * sign(d loss / d images), bounds): the images after one step of attack.

    Args:
        model: images [B, ...] -> logits [B, C], differentiable.
        images: float32 [N, ...] in ``bounds``.
        labels: int64 [N], the true ones.
        eps: largest change of a pixel, at least 0.
        bounds: lowest and highest value of a pixel.

    Notes:
        sign(0) = 0: a pixel without influence stays. The loss is summed over images, so a batch is as its parts.

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples" (arXiv 1412.6572).
    """
    check(eps >= 0, f"expected eps of at least 0, got {eps}")
    attacked = torch.empty_like(images)
    with evaluating(model):
        for x, y, out in _chunks(images, labels, attacked):
            out.copy_(x.add(_ascent(model, x, y), alpha=eps).clamp_(*bounds))
    return attacked


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    seed: int = 0,
    bounds: Bounds = BOUNDS,
) -> Tensor:
    """Images after ``steps`` steps of projected gradient ascent from a random start.

        x0 = images + U(-eps, eps);  x <- clamp(x + step_size * sign(d loss / dx), images - eps, images + eps, bounds)

    Args:
        model: images [B, ...] -> logits [B, C], differentiable.
        images: float32 [N, ...] in ``bounds``.
        labels: int64 [N], the true ones.
        eps: largest change of a pixel, at least 0.
        steps: at least 1.
        step_size: of one step; default: 2.5 * eps / steps.
        seed: of the random start.
        bounds: lowest and highest value of a pixel.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (arXiv 1706.06083).
    """
    check(eps >= 0, f"expected eps of at least 0, got {eps}")
    check(steps >= 1, f"expected steps of at least 1, got {steps}")
    step = 2.5 * eps / steps if step_size is None else step_size
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    attacked = torch.empty_like(images)
    with evaluating(model):
        for x, y, u, out in _chunks(images, labels, start, attacked):
            low, high = (x - eps).clamp_(min=bounds[0]), (x + eps).clamp_(max=bounds[1])
            moved = torch.clamp(x + (2 * u - 1) * eps, low, high)
            for _ in range(steps):
                moved = torch.clamp(moved + step * _ascent(model, moved, y), low, high)
            out.copy_(moved)
    return attacked


def attack_curve(
    attack: Callable[..., Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Sequence[float],
    **options: object,
) -> list[float]:
    """Accuracy under ``attack`` (``fgsm`` or ``pgd``, with its ``options``) at each of ``eps``."""
    return [
        accuracy(model, attack(model, images, labels, value, **options), labels) for value in eps
    ]


def _ascent(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """sign(d loss / dx); nothing is written to the parameters' gradients."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(cross_entropy(model(x), y, "sum"), x)[0].sign_()


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    for tensor in tensors:
        check(
            len(tensor) == len(tensors[0]),
            f"expected as many labels as images, got {len(tensor)} and {len(tensors[0])}",
        )
    return zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of images or windows: what every arm trains on."""
    inputs, labels = batch
    return cross_entropy(model(inputs), labels)


def loss_and_accuracy(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Loss and accuracy on the validation set, which is one batch."""
    ((inputs, labels),) = batches
    return {"loss": loss(model, inputs, labels), "accuracy": accuracy(model, inputs, labels)}
