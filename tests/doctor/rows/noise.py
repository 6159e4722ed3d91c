"""Networks that draw noise of a scale of their own, which a penalty holds near that of a prior."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Laplace, Normal, kl_divergence
from torch.nn import functional as F

from tests.doctor.rows import Cases, load

_WIDTH = 6


class Bottleneck(nn.Module):
    """Classifier of a code that is drawn around what its network says (Alemi et al. 2017)."""

    def __init__(self, scale: Callable[[Tensor], Tensor], *, way: str = "noise", keeps: bool = False) -> None:
        super().__init__()
        self.scale, self.way, self.keeps = scale, way, keeps
        self.body, self.where, self.spread = nn.Linear(10, 24), nn.Linear(24, _WIDTH), nn.Linear(24, _WIDTH)
        self.last = nn.Linear(_WIDTH, 3)

    def forward(self, rows: Tensor) -> Any:
        hidden = self.body(rows).relu()
        mean, spread = self.where(hidden), self.spread(hidden)
        scale = self.scale(spread)
        if self.way == "laplace":
            code = Laplace(mean, scale).rsample()
        elif self.way == "distribution":
            code = Normal(mean, scale).rsample()
        else:
            code = mean + torch.randn_like(scale) * scale
        if self.keeps:
            self.kept = mean, spread
            return self.last(code)
        return self.last(code), mean, spread


def of_variance(mean: Tensor, log_variance: Tensor) -> Tensor:
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()


def of_deviation(mean: Tensor, log_deviation: Tensor) -> Tensor:
    return of_variance(mean, 2 * log_deviation)


def square_left_out(mean: Tensor, log_deviation: Tensor) -> Tensor:
    return -0.5 * (1 + 2 * log_deviation - mean.square() - log_deviation.exp()).sum(1).mean()


def prior_of(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda mean, spread: kl_divergence(Normal(mean, spread.exp()), Normal(0.0, scale)).sum(1).mean()


def free(mean: Tensor, spread: Tensor) -> Tensor:
    """Bits of each number up to a bound are free (Kingma et al. 2016)."""
    return kl_divergence(Normal(mean, spread.exp()), Normal(0.0, 1.0)).clamp(min=0.02).sum(1).mean()


def make(
    scale: Callable[[Tensor], Tensor], penalty: Callable[[Tensor, Tensor], Tensor], **more: Any
) -> tuple[Any, ...]:
    model = Bottleneck(scale, **more)
    labels = torch.randint(0, 3, (96,))
    rows = torch.randn(96, 10) + 2 * torch.eye(3, 10)[labels]

    def loss(outputs: Any, label: Tensor) -> Tensor:
        scores, *code = (outputs, *model.kept) if model.keeps else outputs
        return F.cross_entropy(scores, label) + 0.1 * penalty(*code)

    return model, loss, load(rows, labels, size=32)


def either(right: Any, wrong: Any, **more: Any) -> Callable[[bool], tuple[Any, ...]]:
    return lambda bug: make(*(wrong if bug else right), **more)


half = lambda spread: (0.5 * spread).exp()  # noqa: E731
CASES: Cases = {
    "a divergence without its square": ("loss.form", either((torch.exp, of_deviation), (torch.exp, square_left_out))),
    "a divergence without its square, of what the model keeps": (
        "loss.form",
        either((torch.exp, of_deviation), (torch.exp, square_left_out), keeps=True),
    ),
    "noise of the variance": ("loss.form model.structure", either((half, of_variance), (torch.exp, of_variance))),
    "a distribution of the variance": (
        "loss.form model.structure",
        either((half, of_variance), (torch.exp, of_variance), way="distribution"),
    ),
    "a divergence of the deviation as a variance": (
        "loss.form",
        either((half, of_variance), (half, of_deviation)),
    ),
}
HEALTHY: dict[str, Callable[[], tuple[Any, ...]]] = {
    "noise of a wider prior": partial(make, torch.exp, prior_of(2.0)),
    "noise of softplus": partial(
        make,
        lambda spread: F.softplus(spread - 1.0),
        lambda mean, spread: kl_divergence(Normal(mean, F.softplus(spread - 1.0)), Normal(0.0, 1.0)).sum(1).mean(),
    ),
    "noise with free bits": partial(make, torch.exp, free),
    "noise of Laplace": partial(
        make,
        torch.exp,
        lambda mean, spread: kl_divergence(Laplace(mean, spread.exp()), Laplace(0.0, 1.0)).sum(1).mean(),
        way="laplace",
    ),
    "noise that is held near none": partial(make, torch.exp, lambda mean, spread: spread.square().mean()),
}
