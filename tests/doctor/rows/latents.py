"""Codes, latents, ranges and padded lists: what a model returns beside its outputs, and what is flat or empty at first.

Each kind of program has a bug of its own beside correct siblings, of which something false was said once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import sightline
from tests.doctor.rows import Cases, load

Term = Callable[[Tensor], Tensor]


# --- codes ------------------------------------------------------------------------------------------------------------


class Quantised(nn.Module):
    """Autoencoder of images with a codebook of moving averages; returns images, the commitment, and a code a place.

    `mixes`: codes are chosen by features that the batch has centred. `turns`: codes are listed by place, then sample.
    """

    def __init__(self, *, mixes: bool = False, turns: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 4, 4, stride=4)
        self.decoder = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, stride=4))
        self.register_buffer("codes", torch.randn(16, 4))
        self.mixes, self.turns = mixes, turns

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.encoder(images).permute(2, 3, 0, 1) if self.turns else self.encoder(images).permute(0, 2, 3, 1)
        asked = rows - rows.mean((0, 1, 2)) if self.mixes else rows
        chosen = torch.cdist(asked.reshape(-1, 4), self.codes).argmin(1)
        values = self.codes[chosen].view_as(rows)
        if self.training:
            with torch.no_grad():
                taken = F.one_hot(chosen, 16).float()
                means = taken.T @ asked.reshape(-1, 4) / taken.sum(0)[:, None].clamp(min=1)
                self.codes.lerp_(torch.where(taken.sum(0)[:, None] > 0, means, self.codes), 0.1)
        passed = rows + (values - rows).detach()
        maps = passed.permute(2, 3, 0, 1) if self.turns else passed.permute(0, 3, 1, 2)
        return self.decoder(maps), F.mse_loss(rows, values.detach()), chosen


def discs(num: int) -> Tensor:
    rows = torch.arange(12.0)
    y, x = (2 + 8 * torch.rand(2, num, 1, 1)).unbind()
    return ((rows[:, None] - y) ** 2 + (rows - x) ** 2 < 9).float()[:, None]


def quantised(bug: bool, **more: Any) -> tuple[Any, ...]:
    images = discs(192)
    loss = lambda outputs, target: F.mse_loss(outputs[0], target) + 0.25 * outputs[1]  # noqa: E731
    return Quantised(mixes=bug, **more), loss, load(images, images, size=32)


# --- ranges -----------------------------------------------------------------------------------------------------------


class Ranged(nn.Module):
    """Numbers as whole multiples of a step, within a range that passes in training mode follow; it is 0 before."""

    def __init__(self, *, is_lost: bool) -> None:
        super().__init__()
        self.register_buffer("top", torch.tensor(0.0))
        self.is_lost = is_lost

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            top = values.detach().abs().max()
            self.top.copy_(torch.where(self.top == 0, top, self.top.lerp(top, 0.1)))
            if self.is_lost:
                self.top.zero_()
        size = (self.top / 127).clamp(min=1e-8)
        scaled = values / size
        whole = scaled + (scaled.round() - scaled).detach()
        return whole.clamp(-(self.top / size), self.top / size) * size


def ranged(bug: bool, *, where: int = 0) -> tuple[Any, ...]:
    """A network of which some numbers have few bits; the bug empties the range at each pass."""
    labels = torch.arange(192) % 3
    layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)]
    layers.insert(where, Ranged(is_lost=bug))
    return (
        nn.Sequential(*layers),
        nn.CrossEntropyLoss(),
        load(torch.randn(192, 8) + 2 * torch.eye(3, 8)[labels], labels),
    )


# --- divergences of which some is free --------------------------------------------------------------------------------


class Prior(nn.Module):
    """Latents of a series of two steps; a network foretells the second from the first. Returns both, and the output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.prior = nn.Sequential(nn.Linear(4, 16), nn.ELU(), nn.Linear(16, 8))
        self.decoder = nn.Linear(4, 6)

    def forward(self, series: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = self.encoder(series).unbind(1)
        mean, spread = second.chunk(2, -1)
        drawn = mean + (F.softplus(spread) + 0.1) * torch.randn_like(mean) * self.training
        return self.decoder(drawn), second, self.prior(first[:, :4])


def compare(one: Tensor, other: Tensor) -> Tensor:
    parts = (values.chunk(2, -1) for values in (one, other))
    return kl_divergence(*(Normal(mean, F.softplus(spread) + 0.1) for mean, spread in parts))


def foretold(bug: bool, *, free: Term) -> tuple[Any, ...]:
    """The divergence counts where it is above its free part, of which there is more than at the first weights."""
    clean = torch.randn(256, 6)
    series = clean[:, None] + 0.1 * torch.randn(256, 2, 6)

    def loss(outputs: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        made, own, foretold = outputs
        return F.mse_loss(made, target) + 0.1 * free(compare(own, foretold.detach() if bug else foretold))

    return Prior(), loss, load(series, clean, size=32)


FREE: dict[str, Term] = {
    "of the mean": lambda divergence: divergence.sum(1).mean().clamp(min=4.0),
    "of each number": lambda divergence: divergence.mean(0).clamp(min=1.5).sum(),
    "by a maximum": lambda divergence: torch.maximum(divergence.sum(1).mean(), torch.tensor(4.0)),
}


def foretell(free: Term) -> None:
    """A loop whose divergence has free nats: at its first updates no gradient comes from it."""
    model, loss, loader = foretold(False, free=free)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(8):
            for series, target in loader:
                optimizer.zero_grad()
                loss(model(series), target).backward()
                optimizer.step()


# --- lists ------------------------------------------------------------------------------------------------------------


class Ranker(nn.Module):
    """Scores (B, N) of the members of padded lists, which attend to one another; the mask is True at members."""

    def __init__(self, *, is_upside_down: bool, wants_padding: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.flips = is_upside_down == wants_padding

    def forward(self, members: Tensor, mask: Tensor) -> Tensor:
        rows = self.first(members)
        padding = ~mask if self.flips else mask
        return self.last(rows + self.attention(rows, rows, rows, padding, need_weights=False)[0])[..., 0]


def ranked(bug: bool, *, wants_padding: bool = False) -> tuple[Any, ...]:
    """Lists of three to eight members; `wants_padding`: the mask of a batch is True at padding."""
    lengths = torch.arange(96) % 6 + 3
    is_member = torch.arange(8) < lengths[:, None]
    members = torch.randn(96, 8, 5) * is_member[..., None]
    target = (members[..., 0] - members[..., 1]).masked_fill(~is_member, 0.0)

    def loss(scores: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        values, counts = target
        return ((scores - values).square() * counts).sum() / counts.sum()

    rows = [((members[i], is_member[i] ^ wants_padding), (target[i], is_member[i].float())) for i in range(96)]
    model = Ranker(is_upside_down=bug, wants_padding=wants_padding)
    return model, loss, torch.utils.data.DataLoader(rows, 16, shuffle=True)  # type: ignore[arg-type]


# --- loops ------------------------------------------------------------------------------------------------------------


class Kernel(nn.Module):
    """Gaussian process on learnt features of points that it holds, all compared with all."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.noise = nn.Parameter(torch.tensor(-1.0))

    def compare(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.exp(-(self.features(one)[:, None] - self.features(other)).square().sum(-1))


def points_with_themselves(*, holds: bool) -> None:
    """All points at each update, twice in one loss; of the model, or of the loop."""
    points = torch.randn(48, 2)
    values = points[:, :1].sin()
    model = Kernel()
    if holds:
        model.register_buffer("points", points)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(120):
            optimizer.zero_grad()
            covariance = model.compare(points, points) + F.softplus(model.noise) * torch.eye(48)
            root = torch.linalg.cholesky(covariance)
            ((values * torch.cholesky_solve(values, root)).sum() / 2 + root.diagonal().log().sum()).backward()
            optimizer.step()


def keep_statistics(*, parts: bool) -> None:
    """The last epochs keep the statistics of batch norms, or those of the body, while their weights train on."""
    body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16))
    model = nn.Sequential(body, nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    labels = torch.arange(256) % 3
    loader = load(torch.randn(256, 8) + 2 * torch.eye(3, 8)[labels], labels)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with sightline.watch(model, optimizer=optimizer):
        for epoch in range(4):
            model.train()
            for module in (body if parts else model).modules() if epoch > 1 else ():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
            for rows, target in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(rows), target).backward()
                optimizer.step()


CASES: Cases = {
    "codes of centred features": ("model.cross_sample_leak", quantised),
    "a range that is emptied": ("model.constant_output", ranged),
    **{
        f"a divergence without its prior, free {name}": ("loss.detached", partial(foretold, free=free))
        for name, free in FREE.items()
    },
    "a mask of members upside down": ("data.padding", ranked),
}
HEALTHY: dict[str, Callable[[], tuple[Any, ...]]] = {
    "codes by turns": partial(quantised, False, turns=True),
    "a range between layers": partial(ranged, False, where=2),
    "a mask that is True at padding": partial(ranked, False, wants_padding=True),
}
LOOPS: dict[str, Callable[[], None]] = {
    **{f"free nats {name}": partial(foretell, free) for name, free in FREE.items()},
    "points with themselves": partial(points_with_themselves, holds=False),
    "points of a model with themselves": partial(points_with_themselves, holds=True),
    "statistics that the last epochs keep": partial(keep_statistics, parts=False),
    "statistics of a body that the last epochs keep": partial(keep_statistics, parts=True),
}
